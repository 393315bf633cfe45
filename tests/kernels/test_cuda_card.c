/*
 * Every op on a real card against the oracle in f64, and once more as a graph of launches for the
 * same bits. Skips where there is no card; tests/gpu.sh runs it where there is one.
 */
#include "tests/kernels/card.h"
#include "tests/kernels/lab.h"

#include <string.h>

/* Larger batches than over the shim: more blocks than a card has places for. */
static const int rows[] = {0, 1, 7, 66, 131, 700};

/* As over the shim; tensor cores cut sums off where the shim rounds them. */
static double tolerance(guint n, WeightFormat format)
{
    return format != WEIGHT_REAL && strstr(lab_cases[n].name, "expert") ? 5e-3 : 2e-5;
}

static void test_case(gconstpointer data)
{
    guint n = GPOINTER_TO_UINT(data);

    if (!card_ops()) {
        g_test_skip(card_missing());
        return;
    }
    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        for (int format = WEIGHT_REAL; format < WEIGHT_FORMATS; format++) {
            WeightFormat exact = format <= WEIGHT_BF16 ? WEIGHT_REAL : (WeightFormat)format;
            g_autoptr(GArray) want = lab_run(n, &ops_ref_f64, rows[i], exact);
            g_autoptr(GArray) got = lab_run(n, card_ops(), rows[i], (WeightFormat)format);
            g_autoptr(GArray) again = lab_run_later(n, card_ops(), rows[i], (WeightFormat)format);
            double off = lab_distance(got, want);

            g_test_message("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows[i], format,
                           off);
            g_assert_true(got->len == 0 ||
                          memcmp(got->data, again->data, got->len * sizeof(double)) == 0);
            if (!(off <= tolerance(n, (WeightFormat)format)))
                g_error("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows[i], format,
                        off);
        }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (guint i = 0; i < lab_n_cases; i++) {
        g_autofree char *path = g_strdup_printf("/cuda_card/%s", lab_cases[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_case);
    }
    return g_test_run();
}
