/* Lightning attention (body_lightning.h) by mma.sync. */
#include "kernels/cuda/product.h"

#include "kernels/cuda/body_lightning.h"
