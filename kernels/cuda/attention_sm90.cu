/* Softmax attention by wgmma, for Hopper: attention.cu over another product. */
#include "kernels/cuda/product_sm90.h"

#include "kernels/cuda/attention.cu"
