/*
 * Opening the CUDA backend: every refusal names its numbers. The driver and the backend are one
 * fake library, argv[1].
 */
#include "kernels/cuda_load.h"

#include <glib.h>
#include <string.h>

static const char *fake;

typedef struct {
    const char *init, *driver, *cards, *major, *mib;
    const char *why; /* part of the reason; NULL: accepted */
} Row;

static const Row rows[] = {
    {"0", "13000", "1", "9", "143771", NULL},
    {"0", "13010", "2", "8", "4096", NULL},
    {"100", "13000", "1", "9", "143771", "does not start: error 100"},
    {"0", "13000", "0", "9", "143771", "no card"},
    {"0", "13000", "1", "7", "143771", "card 7 has compute capability 7.6; kernels are for 8.0"},
    {"0", "13000", "1", "9", "4095", "card 7 has 4095 MiB of memory; at least 4096"},
    {"0", "12080", "1", "9", "143771", "speaks CUDA 12.8; the backend needs 13.0"},
};

static void test_row(gconstpointer data)
{
    const Row *row = data;
    char why[256] = "";
    CudaCard card;
    const Ops *ops;

    g_setenv("FAKE_INIT", row->init, TRUE);
    g_setenv("FAKE_DRIVER", row->driver, TRUE);
    g_setenv("FAKE_CARDS", row->cards, TRUE);
    g_setenv("FAKE_MAJOR", row->major, TRUE);
    g_setenv("FAKE_MIB", row->mib, TRUE);
    ops = cuda_load(&card, fake, fake, why, sizeof why);
    g_test_message("%s", ops ? ops->name : why);
    if (!row->why) {
        g_assert_nonnull(ops);
        g_assert_cmpstr(ops->name, ==, "fake");
        g_assert_cmpint(card.major, ==, (int)g_ascii_strtoll(row->major, NULL, 10));
        g_assert_true(card.reads_host);
    } else {
        g_assert_null(ops);
        g_assert_nonnull(strstr(why, row->why));
    }
}

static void test_nothing_there(void)
{
    char why[256] = "";
    CudaCard card;

    g_assert_null(cuda_load(&card, "/nowhere/libcuda.so.1", fake, why, sizeof why));
    g_assert_true(g_str_has_prefix(why, "no CUDA driver: /nowhere/libcuda.so.1"));
    g_setenv("FAKE_INIT", "0", TRUE);
    g_setenv("FAKE_CARDS", "1", TRUE);
    g_setenv("FAKE_MAJOR", "9", TRUE);
    g_setenv("FAKE_MIB", "8192", TRUE);
    g_assert_null(cuda_load(&card, fake, "/nowhere/libassay-cuda.so", why, sizeof why));
    g_assert_true(g_str_has_prefix(why, "no CUDA backend: /nowhere/libassay-cuda.so"));
    g_assert_false(cuda_card(&card, "libm.so.6", why, sizeof why));
    g_assert_cmpstr(why, ==, "libm.so.6 has no cuInit");
}

/* What is cut still ends. */
static void test_short_why(void)
{
    char why[8] = "";
    CudaCard card;

    g_assert_false(cuda_card(&card, "/nowhere/libcuda.so.1", why, sizeof why));
    g_assert_cmpuint(strlen(why), ==, sizeof why - 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, ==, 2);
    fake = argv[1];
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *path = g_strdup_printf("/cuda_load/%zu", i);

        g_test_add_data_func(path, &rows[i], test_row);
    }
    g_test_add_func("/cuda_load/without_driver_or_backend", test_nothing_there);
    g_test_add_func("/cuda_load/a_short_buffer", test_short_why);
    return g_test_run();
}
