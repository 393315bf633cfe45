/* The CUDA backend's source over the shim. */
#include "tests/kernels/card.h"

#include "kernels/cuda/entry.h"

const Ops *card_ops(void)
{
    return cuda_ops();
}

const char *card_missing(void)
{
    return "";
}

int card_reads_host(void)
{
    return 1;
}
