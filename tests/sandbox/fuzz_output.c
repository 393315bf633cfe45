/*
 * A stream in pieces of any size: what is kept is its head and its tail, within the cap.
 *
 * An input is two bytes of cap, then pieces: a byte of length and that many bytes.
 */
#include "sandbox/output.h"
#include "tests/sandbox/fuzz.h"

#include <string.h>

#define NOTE_MAX 64 /* the line between head and tail */

static void add_pieces(Output *output, GByteArray *all, const guint8 *data, gsize len)
{
    while (len > 0) {
        gsize n = MIN((gsize)data[0], len - 1);
        output_add(output, data + 1, n);
        g_byte_array_append(all, data + 1, (guint)n);
        data += n + 1;
        len -= n + 1;
    }
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    if (len < 2)
        return 0;
    guint64 keep = data[0] | (guint64)data[1] << 8;
    g_autoptr(GByteArray) all = g_byte_array_new();
    Output output;
    gboolean truncated = FALSE;
    output_init(&output, keep);
    add_pieces(&output, all, data + 2, len - 2);
    g_assert_cmpuint(output.total, ==, all->len);

    g_autoptr(GBytes) kept = output_finish(&output, &truncated);
    gsize n = 0;
    const guint8 *text = g_bytes_get_data(kept, &n);
    if (!truncated) {
        g_assert_cmpmem(text, (guint)n, all->data, all->len);
        return 0;
    }
    g_assert_cmpuint(all->len, >, keep);
    g_assert_cmpuint(n, <=, keep + NOTE_MAX);
    guint first = (guint)keep / 2, last = (guint)keep - first;
    g_assert_cmpmem(text, first, all->data, first);
    g_assert_cmpmem(text + n - last, last, all->data + all->len - last, last);
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const char *const texts[] = {"\x08\x00\x03"
                                        "abc\x05"
                                        "defgh\x04"
                                        "ijkl",
                                        "\x01\x00\x02"
                                        "ab",
                                        "\x00\x01\x01"
                                        "a"};
    static const gsize lens[] = {17, 5, 4};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_ptr_array_add(seeds, g_bytes_new_static(texts[i], lens[i]));
}
