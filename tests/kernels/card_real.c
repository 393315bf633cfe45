/* The CUDA backend on this machine's card. */
#include "tests/kernels/card.h"

#include "kernels/cuda_load.h"

static char why[256];
static CudaCard card;

const Ops *card_ops(void)
{
    static const Ops *ops;

    if (!ops && !why[0])
        ops = cuda_load(&card, NULL, NULL, why, sizeof why);
    return ops;
}

const char *card_missing(void)
{
    return why;
}

int card_reads_host(void)
{
    return card.reads_host;
}

long card_graphs(void)
{
    return -1;
}
