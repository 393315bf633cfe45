/*
 * What libassay-cuda.so exports, and kernels/cuda_load.c finds by name.
 */
#pragma once

#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The backend's table; the process has chosen its card by then. */
const Ops *cuda_ops(void);

#ifdef __cplusplus
}
#endif
