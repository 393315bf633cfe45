/*
 * Feeds a fuzz target where libFuzzer is not at hand: seeds, files, then mutations of them.
 *
 *     ASSAY_FUZZ_ROUNDS=10000000 build/tests/sandbox/fuzz_spec [FILE...]
 *
 * Invariants:
 *   1. The same rounds in every run: round N mutates with seed N alone. When a round ends the
 *      process its number is printed; ASSAY_FUZZ_ROUND=N runs only that one.
 *   2. Every input lies in a block of exactly its length, so that a sanitizer sees a byte too many.
 *
 * Not here: coverage. That is libFuzzer's part.
 */
#include "tests/sandbox/fuzz.h"

#include "base/fd.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ROUNDS        200000u
#define INPUT_MAX     (1u << 20)
#define MUTATIONS_MAX 6u

static guint64 round_now;

/* splitmix64 (Steele, Lea, Flood 2014). */
static guint64 next_random(guint64 *state)
{
    guint64 z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static guint below(guint64 *state, guint n)
{
    return n == 0 ? 0 : (guint)(next_random(state) % n);
}

static void feed(const guint8 *data, gsize len)
{
    g_autofree guint8 *exact = g_malloc(MAX(len, 1u));
    memcpy(exact, data, len);
    LLVMFuzzerTestOneInput(exact, len);
}

/* Values at which sizes and counts turn. */
static guint32 edge(guint64 *state)
{
    static const guint32 edges[] = {0,          1,          2,          0x7f,      0x80,
                                    0xff,       0x100,      0x7fff,     0xffff,    0x10000,
                                    0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    return edges[below(state, G_N_ELEMENTS(edges))];
}

static void mutate(GByteArray *input, GPtrArray *seeds, guint64 *state)
{
    guint at = below(state, input->len), word;
    gsize len = 0;
    const guint8 *other;
    switch (below(state, 7)) {
    case 0:
        if (input->len > 0)
            input->data[at] ^= (guint8)(1u << below(state, 8));
        break;
    case 1:
        if (input->len > 0)
            input->data[at] = (guint8)next_random(state);
        break;
    case 2:
        word = edge(state);
        if (input->len >= sizeof word)
            memcpy(input->data + MIN(at, input->len - sizeof word), &word, sizeof word);
        break;
    case 3:
        g_byte_array_set_size(input, at);
        break;
    case 4:
        if (input->len > 0)
            g_byte_array_remove_range(input, at, 1 + below(state, MIN(16, input->len - at)));
        break;
    case 5:
        word = edge(state);
        g_byte_array_append(input, (const guint8 *)&word, 1 + below(state, sizeof word));
        break;
    default: /* the head of this one, the tail of another */
        other = g_bytes_get_data(seeds->pdata[below(state, seeds->len)], &len);
        g_byte_array_set_size(input, at);
        if (len > 0) {
            guint from = below(state, (guint)len);
            g_byte_array_append(input, other + from, (guint)len - from);
        }
    }
    if (input->len > INPUT_MAX)
        g_byte_array_set_size(input, INPUT_MAX);
}

static void run_round(GPtrArray *seeds, guint64 number)
{
    guint64 state = number;
    gsize len = 0;
    round_now = number;
    const guint8 *seed = g_bytes_get_data(seeds->pdata[below(&state, seeds->len)], &len);
    g_autoptr(GByteArray) input = g_byte_array_new();
    g_byte_array_append(input, seed, (guint)len);
    for (guint n = 1 + below(&state, MUTATIONS_MAX); n > 0; n--)
        mutate(input, seeds, &state);
    feed(input->data == NULL ? (const guint8 *)"" : input->data, input->len);
}

static void say_round(int signal_number)
{
    char text[64];
    int n = snprintf(text, sizeof text, "# ended in round %llu\n", (unsigned long long)round_now);
    (void)!write(STDOUT_FILENO, text, (size_t)n);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static guint64 number_of(const char *name, guint64 otherwise)
{
    const char *text = g_getenv(name);
    return text == NULL ? otherwise : g_ascii_strtoull(text, NULL, 10);
}

int main(int argc, char **argv)
{
    g_autoptr(GPtrArray) seeds = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    guint64 rounds = number_of("ASSAY_FUZZ_ROUNDS", ROUNDS),
            only = number_of("ASSAY_FUZZ_ROUND", 0);
    signal(SIGABRT, say_round);
    signal(SIGSEGV, say_round);
    signal(SIGBUS, say_round);
    fuzz_seeds(seeds);
    for (int i = 1; i < argc; i++) {
        GBytes *bytes = file_read(argv[i], INPUT_MAX, NULL);
        if (bytes != NULL)
            g_ptr_array_add(seeds, bytes);
    }
    g_assert_cmpuint(seeds->len, >, 0);
    printf("1..1\n");
    for (guint i = 0; only == 0 && i < seeds->len; i++) {
        gsize len = 0;
        const guint8 *data = g_bytes_get_data(seeds->pdata[i], &len);
        feed(data, len);
    }
    for (guint64 number = only > 0 ? only : 1; number <= (only > 0 ? only : rounds); number++)
        run_round(seeds, number);
    printf("ok 1 - %u seeds and %llu mutations hold\n", seeds->len,
           (unsigned long long)(only > 0 ? 1 : rounds));
    return 0;
}
