/* Gradients of softmax attention (body_attention_bwd.h) by mma.sync. */
#include "kernels/cuda/product.h"

#include "kernels/cuda/body_attention_bwd.h"
