/*
 * Softmax attention (body_attention.h) by mma.sync, and what all of attention stages.
 *
 * Not here: the same by wgmma (attention_sm90.cu).
 */
#include "kernels/cuda/product.h"

#include "kernels/cuda/body_attention.h"

static size_t pages_of(const OpsSpan *span, OpsHeads h)
{
    return (size_t)((span->pos0 + span->rows + h.chunk - 1) / h.chunk);
}

static int tiles_of(const OpsSpan *span, OpsHeads h)
{
    return (span->rows * (h.heads / h.kv_heads) + TILE_M - 1) / TILE_M;
}

size_t attn_stage_bytes(const OpsSpan *spans, int n_spans, OpsHeads heads)
{
    size_t bytes = stage_size((size_t)n_spans * sizeof(AttnSpan)), tiles = 0;

    for (int n = 0; n < n_spans; n++) {
        bytes += stage_size(pages_of(&spans[n], heads) * sizeof(void *));
        tiles += (size_t)tiles_of(&spans[n], heads);
    }
    return bytes + stage_size(tiles * sizeof(AttnTile));
}

const AttnSpan *attn_put_spans(const OpsSpan *spans, int n_spans, OpsHeads heads)
{
    void *fill;
    const AttnSpan *staged =
        (const AttnSpan *)cuda_put_room((size_t)n_spans * sizeof(AttnSpan), &fill);
    AttnSpan *list = (AttnSpan *)fill;

    for (int n = 0; n < n_spans; n++) {
        const void *pages =
            cuda_put(spans[n].pages, pages_of(&spans[n], heads) * sizeof *spans[n].pages);

        list[n].row0 = spans[n].row0;
        list[n].rows = spans[n].rows;
        list[n].pos0 = spans[n].pos0;
        list[n].pages = (const void *const *)pages;
    }
    return staged;
}

const AttnTile *attn_put_tiles(const OpsSpan *spans, int n_spans, OpsHeads heads, int *n_tiles)
{
    void *fill;
    const void *staged;
    int count = 0;

    for (int n = 0; n < n_spans; n++)
        count += tiles_of(&spans[n], heads);
    staged = cuda_put_room((size_t)count * sizeof(AttnTile), &fill);
    for (int n = 0, at = 0; n < n_spans; n++)
        for (int i = 0; i < tiles_of(&spans[n], heads); i++, at++) {
            ((AttnTile *)fill)[at].span = n;
            ((AttnTile *)fill)[at].x0 = i * TILE_M;
        }
    *n_tiles = count;
    return (const AttnTile *)staged;
}
