/* Softmax attention (body_attention.h) by wgmma, for Hopper. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/body_attention.h"
