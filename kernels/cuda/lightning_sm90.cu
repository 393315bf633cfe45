/* Lightning attention by wgmma, for Hopper: lightning.cu over another product. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/lightning.cu"
