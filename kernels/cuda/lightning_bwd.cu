/* Gradients of lightning attention (body_lightning_bwd.h) by mma.sync. */
#include "kernels/cuda/product.h"

#include "kernels/cuda/body_lightning_bwd.h"
