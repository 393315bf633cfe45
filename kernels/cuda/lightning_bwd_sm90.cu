/* Gradients of lightning attention by wgmma, for Hopper: lightning_bwd.cu over another product. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/lightning_bwd.cu"
