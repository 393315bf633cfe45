/* Gradients of lightning attention (body_lightning_bwd.h) by wgmma, for Hopper. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/body_lightning_bwd.h"
