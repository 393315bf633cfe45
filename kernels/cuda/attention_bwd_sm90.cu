/* Gradients of softmax attention (body_attention_bwd.h) by wgmma, for Hopper. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/body_attention_bwd.h"
