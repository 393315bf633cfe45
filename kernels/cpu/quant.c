/*
 * Panels of four- and eight-bit weights: packed group by group, widened piece by piece.
 *
 * A panel is [k][PANEL] codes, in int4 [k / 2][PANEL] with the even k in the low half of a byte,
 * and behind them 16-bit scales: [groups][PANEL], in fp8 one for each group, since a panel lies
 * within 128 rows.
 *
 * Not here: formats and rounding (kernels/quant.h), the products (gemm.c).
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/quant.h"

/* Where the parts of a panel are, in bytes. */
typedef struct {
    int groups, cols, scales; /* of k; inputs of a group; scales of a group */
    size_t codes, bytes;
} Layout;

static Layout layout_of(WeightFormat format, int k)
{
    Layout l = {.cols = quant_group_cols(format), .scales = format == WEIGHT_FP8 ? 1 : PANEL};
    size_t scales;

    l.groups = (k + l.cols - 1) / l.cols;
    l.codes = (format == WEIGHT_INT4 ? ((size_t)k + 1) / 2 : (size_t)k) * PANEL;
    l.codes = (l.codes + 1) / 2 * 2;
    scales = (size_t)l.groups * (size_t)l.scales * sizeof(uint16_t);
    l.bytes = (l.codes + scales + 63) / 64 * 64;
    return l;
}

static uint8_t *panel_at(const OpsWeight *w, const Layout *l, int panel)
{
    return (uint8_t *)w->data + (size_t)panel * l->bytes;
}

size_t CPU(quant_bytes)(WeightFormat format, int n, int k)
{
    return (size_t)((n + PANEL - 1) / PANEL) * layout_of(format, k).bytes;
}

/* ---- packing ---- */

static int least(int a, int b)
{
    return a < b ? a : b;
}

static void code_put(WeightFormat format, uint8_t *panel, int k, int c, uint8_t code)
{
    uint8_t *at = panel + (size_t)(format == WEIGHT_INT4 ? k / 2 : k) * PANEL + c;

    if (format != WEIGHT_INT4)
        *at = code;
    else
        *at = (uint8_t)(k % 2 ? (*at & 0x0f) | code << 4 : (*at & 0xf0) | (code & 0x0f));
}

/* Column c of the panel is row n of the matrix. */
static void column_pack(const OpsWeight *w, const Layout *l, int panel, int c, const float *rows)
{
    int n = panel * PANEL + c, tall = quant_group_rows(w->format), n0 = n / tall * tall;
    uint8_t *to = panel_at(w, l, panel);
    uint16_t *scales = (uint16_t *)(void *)(to + l->codes);

    for (int g = 0; g < l->groups; g++) {
        int k0 = g * l->cols, k1 = least(k0 + l->cols, w->k);
        uint16_t *scale = scales + (size_t)g * (size_t)l->scales + (l->scales > 1 ? c : 0);

        if (l->scales > 1 || c == 0)
            *scale = quant_scale_of(
                w->format, quant_most(rows, (size_t)w->k, n0, least(n0 + tall, w->n), k0, k1));
        for (int k = k0; k < k1; k++)
            code_put(w->format, to, k, c,
                     quant_code(w->format, rows[(size_t)n * w->k + k], bf16_float(*scale)));
    }
}

void CPU(quant_pack)(const OpsWeight *w, const void *rows)
{
    Layout l = layout_of(w->format, w->k);

    memset(w->data, 0, CPU(quant_bytes)(w->format, w->n, w->k));
    for (int n = 0; n < w->n; n++)
        column_pack(w, &l, n / PANEL, n % PANEL, rows);
}

/* ---- widening ---- */

INLINE void row_widen(WeightFormat format, float *to, const uint8_t *codes, int high,
                      const float *scale)
{
    for (int c = 0; c < PANEL; c++) {
        uint8_t code = codes[c];

        if (format == WEIGHT_INT4)
            code = quant_nibble(code, high);
        to[c] = bf16_float(bf16_of(quant_value(format, code, scale[c])));
    }
}

/* Rows k .. end - 1, all of one group; `format` is a constant at every call. */
INLINE void group_widen(WeightFormat format, float *to, const uint8_t *panel, int k, int end,
                        const uint16_t *bits)
{
    float scale[PANEL];

    for (int c = 0; c < PANEL; c++)
        scale[c] = bf16_float(bits[format == WEIGHT_FP8 ? 0 : c]);
    for (; k < end; k++, to += PANEL)
        row_widen(format, to, panel + (size_t)(format == WEIGHT_INT4 ? k / 2 : k) * PANEL, k % 2,
                  scale);
}

void CPU(quant_widen)(float *to, const OpsWeight *w, int panel, int k, int kn)
{
    Layout l = layout_of(w->format, w->k);
    const uint8_t *from = panel_at(w, &l, panel);
    const uint16_t *scales = (const uint16_t *)(const void *)(from + l.codes);

    for (int at = k, end; at < k + kn; at = end) {
        const uint16_t *bits = scales + (size_t)(at / l.cols) * (size_t)l.scales;

        end = least((at / l.cols + 1) * l.cols, k + kn);
        if (w->format == WEIGHT_INT4)
            group_widen(WEIGHT_INT4, to + (size_t)(at - k) * PANEL, from, at, end, bits);
        else if (w->format == WEIGHT_INT8)
            group_widen(WEIGHT_INT8, to + (size_t)(at - k) * PANEL, from, at, end, bits);
        else
            group_widen(WEIGHT_FP8, to + (size_t)(at - k) * PANEL, from, at, end, bits);
    }
}

float CPU(quant_at)(const OpsWeight *w, int n, int k)
{
    Layout l = layout_of(w->format, w->k);
    const uint8_t *from = panel_at(w, &l, n / PANEL);
    const uint16_t *scales = (const uint16_t *)(const void *)(from + l.codes);
    uint16_t bits =
        scales[(size_t)(k / l.cols) * (size_t)l.scales + (size_t)(l.scales > 1 ? n % PANEL : 0)];
    uint8_t code = from[(size_t)(w->format == WEIGHT_INT4 ? k / 2 : k) * PANEL + n % PANEL];

    if (w->format == WEIGHT_INT4)
        code = quant_nibble(code, k % 2);
    return bf16_float(bf16_of(quant_value(w->format, code, bf16_float(bits))));
}
