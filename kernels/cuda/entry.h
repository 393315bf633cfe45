/*
 * What libassay-cuda.so exports, and kernels/cuda_load.c finds by name.
 */
#pragma once

#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The backend's table, on the first card that the driver shows. */
__attribute__((visibility("default"))) const Ops *cuda_ops(void);

/* The CUDA version that a driver must speak, as CudaCard.driver counts. */
__attribute__((visibility("default"))) int cuda_needs(void);

#ifdef __cplusplus
}
#endif
