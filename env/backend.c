/*
 * The choice of an op table.
 *
 * Invariants
 *  1. A card is used only when asked for, and a card that was asked for is never silently replaced.
 *  2. Models allocate by malloc, so a card must read the process's memory (HMM or ATS).
 *
 * Not here: finding a card (kernels/cuda_load.c). The daemon does not link this file.
 */
#include "env/backend.h"

#include "base/error.h"
#include "base/id.h"
#include "kernels/comm_cards.h"
#include "kernels/cuda_load.h"

#include <string.h>

#define WHY_BYTES 256

static const Ops *chosen;

/* NULL with the reason in `why`. */
static const Ops *card_ops(CudaCard *card, char why[WHY_BYTES])
{
    const Ops *ops = cuda_load(card, NULL, NULL, why, WHY_BYTES);
    if (ops == NULL || card->reads_host)
        return ops;
    g_snprintf(why, WHY_BYTES,
               "%s does not read memory of the process (no HMM: open kernel modules and Linux 6.1 "
               "or newer have it)",
               card->name);
    return NULL;
}

gboolean backend_choose(GError **error)
{
    const char *wanted = g_getenv("ASSAY_OPS");
    char why[WHY_BYTES] = "";
    CudaCard card;
    if (wanted == NULL || strcmp(wanted, "cpu") == 0)
        return TRUE;
    if (strcmp(wanted, "cuda") != 0)
        return error_set(error, ASSAY_ERROR_INPUT, "ASSAY_OPS: %s is neither cpu nor cuda", wanted);
    chosen = card_ops(&card, why);
    return chosen != NULL || error_set(error, ASSAY_ERROR_UNSUPPORTED, "ASSAY_OPS=cuda: %s", why);
}

const Ops *backend_ops(void)
{
    return chosen != NULL ? chosen : ops_cpu();
}

gboolean backend_is_card(void)
{
    return chosen != NULL;
}

json_t *backend_ranks_check(void)
{
    gint64 start = clock_mono_ns();
    char mpi[WHY_BYTES], why[WHY_BYTES] = "";
    int nccl = comm_cards_version(NULL, why, sizeof why);
    g_autofree char *cards =
        nccl > 0 ? g_strdup_printf("NCCL %d.%d.%d", nccl / 10000, nccl / 100 % 100, nccl % 100)
                 : g_strdup(why);
    g_autofree char *detail = NULL;

    comm_about(mpi, sizeof mpi);
    detail = g_strdup_printf("%s; between cards: %s", mpi, cards);
    return json_pack("{s:s,s:s,s:s,s:s,s:[],s:I}", "id", "ranks", "group", "policy", "status", "ok",
                     "detail", detail, "fix", "ms",
                     (json_int_t)((clock_mono_ns() - start) / 1000000));
}

static char *card_detail(const CudaCard *card, const Ops *ops)
{
    return g_strdup_printf("%s (compute capability %d.%d, %" G_GUINT64_FORMAT
                           " MiB, driver of CUDA %d.%d) takes models as %s with ASSAY_OPS=cuda",
                           card->name, card->major, card->minor, (guint64)card->memory_bytes >> 20,
                           card->driver / 1000, card->driver % 1000 / 10, ops->name);
}

json_t *backend_check(void)
{
    gint64 start = clock_mono_ns();
    gboolean wanted = g_strcmp0(g_getenv("ASSAY_OPS"), "cuda") == 0;
    char why[WHY_BYTES] = "";
    CudaCard card;
    const Ops *ops = card_ops(&card, why);
    g_autofree char *about = ops != NULL ? card_detail(&card, ops) : g_strdup(why);
    g_autofree char *detail = g_strdup_printf(
        "models run on %s; %s", wanted && ops != NULL ? ops->name : ops_cpu()->name, about);
    return json_pack("{s:s,s:s,s:s,s:s,s:[],s:I}", "id", "ops", "group", "policy", "status",
                     wanted && ops == NULL ? "fail" : "ok", "detail", detail, "fix", "ms",
                     (json_int_t)((clock_mono_ns() - start) / 1000000));
}
