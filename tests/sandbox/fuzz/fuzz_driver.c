/*
 * Runs a fuzz target without a fuzzer: its seeds, then changed seeds, the same in every run.
 * ASSAY_FUZZ_ROUNDS asks for more of them. Prints TAP.
 */
#include "tests/sandbox/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>

#define ROUNDS    100000u
#define BYTES_MAX (64u << 10)
#define CHANGES   4

static const guint32 edges[] = {0,          1,          2,          0x7f,      0x80,
                                0xff,       0x100,      0x7fff,     0xffff,    0x10000000,
                                0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};

static guint below(GRand *rand, guint end)
{
    return end == 0 ? 0 : (guint)g_rand_int_range(rand, 0, (gint32)end);
}

static void put_edge(GByteArray *bytes, GRand *rand)
{
    guint32 value = edges[below(rand, G_N_ELEMENTS(edges))];
    if (bytes->len >= sizeof value)
        memcpy(bytes->data + below(rand, bytes->len - (guint)sizeof value + 1), &value, sizeof value);
}

/* A piece of another seed over, or into, this one. */
static void splice(GByteArray *bytes, const GPtrArray *seeds, GRand *rand)
{
    const GByteArray *other = seeds->pdata[below(rand, seeds->len)];
    guint from = below(rand, other->len), n = below(rand, other->len - from + 1);
    guint at = below(rand, bytes->len + 1);
    if (n == 0 || bytes->len + n > BYTES_MAX)
        return;
    guint tail = bytes->len - at;
    g_byte_array_set_size(bytes, bytes->len + n);
    memmove(bytes->data + at + n, bytes->data + at, tail);
    memcpy(bytes->data + at, other->data + from, n);
}

static void change(GByteArray *bytes, const GPtrArray *seeds, GRand *rand)
{
    guint at = below(rand, bytes->len);
    switch (below(rand, 6)) {
    case 0:
        if (bytes->len > 0)
            bytes->data[at] ^= (guint8)(1u << below(rand, 8));
        return;
    case 1:
        if (bytes->len > 0)
            bytes->data[at] = (guint8)below(rand, 256);
        return;
    case 2:
        put_edge(bytes, rand);
        return;
    case 3:
        g_byte_array_set_size(bytes, at);
        return;
    case 4:
        if (bytes->len > 0)
            g_byte_array_remove_range(bytes, at, below(rand, MIN(bytes->len - at, 32u)) + 1);
        return;
    default:
        splice(bytes, seeds, rand);
    }
}

/* The copy is exactly as long as the input, so that a sanitizer sees the first byte too many. */
static void run(const GByteArray *bytes)
{
    g_autofree guint8 *copy = g_memdup2(bytes->data, bytes->len);
    LLVMFuzzerTestOneInput(copy, bytes->len);
}

int main(int argc, char **argv)
{
    const char *wanted = g_getenv("ASSAY_FUZZ_ROUNDS");
    guint64 rounds = wanted != NULL ? g_ascii_strtoull(wanted, NULL, 10) : ROUNDS;
    g_autoptr(GPtrArray) seeds = g_ptr_array_new_with_free_func((GDestroyNotify)g_byte_array_unref);
    g_autoptr(GRand) rand = g_rand_new_with_seed(4711);
    for (GByteArray *seed = g_byte_array_new();; seed = g_byte_array_new()) {
        if (!fuzz_seed(seeds->len, seed)) {
            g_byte_array_unref(seed);
            break;
        }
        g_ptr_array_add(seeds, seed);
        run(seed);
    }
    for (guint64 i = 0; i < rounds; i++) {
        const GByteArray *seed = seeds->pdata[i % seeds->len];
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_append(bytes, seed->data, seed->len);
        for (guint k = below(rand, CHANGES) + 1; k > 0; k--)
            change(bytes, seeds, rand);
        run(bytes);
    }
    printf("1..1\nok 1 %s lived through %" G_GUINT64_FORMAT " rounds over %u seeds\n",
           argc > 0 ? argv[0] : "", rounds, seeds->len);
    return 0;
}
