/* Gradients of softmax attention by wgmma, for Hopper: attention_bwd.cu over another product. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/attention_bwd.cu"
