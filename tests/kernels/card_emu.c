/* The CUDA backend's source over the shim, as on a card of compute capability $CUEMU_MAJOR.0. */
#include "tests/kernels/card.h"

#include "kernels/cuda/entry.h"
#include "kernels/cuemu/sites.h"

#include <glib.h>

const Ops *card_ops(void)
{
    cuemu_capability(g_strcmp0(g_getenv("CUEMU_MAJOR"), "9") == 0 ? 9 : 8);
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

long card_graphs(void)
{
    return cuemu_graphs().launched;
}
