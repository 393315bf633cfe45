/*
 * The CUDA backend, where there is a card for it: opened at run time, linked to by nothing.
 */
#pragma once

#include "kernels/ops.h"

/* What the backend asks of a card. */
#define CUDA_MAJOR_MIN  8            /* compute capability: bf16 products of a warp */
#define CUDA_MEMORY_MIN (4ull << 30) /* bytes */

typedef struct {
    char name[128];
    int driver; /* CUDA version that the driver speaks: 13000 is 13.0 */
    int major, minor;
    int reads_host; /* the card reads any memory of the process */
    uint64_t memory_bytes;
} CudaCard;

/*
 * The first card, by the driver's own word. `driver`: file name of its library, NULL for the usual.
 * Returns 1, or 0 with the reason in `why` and the numbers that it knows in `card`.
 */
int cuda_card(CudaCard *card, const char *driver, char *why, size_t why_size);

/*
 * The backend's table; NULL with the reason in `why`: no driver, no card, one that is too small or
 * too old, a driver older than the library's CUDA, or no library. `library`: its path, NULL to look
 * beside the program and where it was installed.
 */
const Ops *cuda_load(CudaCard *card, const char *driver, const char *library, char *why,
                     size_t why_size);
