/*
 * The command line of the box tool: an input is its words, one a line.
 *
 * What must hold: what is refused has a reason; what is accepted is within its ranges, and the
 * command is made of the last words as they came.
 */
#include "sandbox/box_options.h"
#include "tests/sandbox/fuzz.h"

#include <string.h>

#define WORDS_MAX 64

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    g_autofree char *text = g_strndup((const char *)data, len);
    g_auto(GStrv) words = g_strsplit(text, "\n", WORDS_MAX);
    g_autoptr(GError) error = NULL;
    g_auto(BoxOptions) options = {0};
    guint n = g_strv_length(words);
    gboolean ok = n > 0 && box_options_parse((int)n, words, &options, &error);
    if (n > 0)
        g_assert_true(ok == (error == NULL));
    if (!ok)
        return 0;
    guint n_command = options.command == NULL ? 0 : g_strv_length(options.command);
    g_assert_cmpuint(n_command, <, n);
    for (guint i = 0; i < n_command; i++)
        g_assert_cmpstr(options.command[i], ==, words[n - n_command + i]);
    g_assert_cmpuint(options.uid, <=, G_MAXUINT32);
    g_assert_cmpuint(options.limits.wall_ms, <=, G_MAXINT64);
    g_assert_cmpuint(options.limits.mem_bytes, <=, G_MAXINT64);
    g_assert_cmpuint(options.limits.disk_bytes, <=, G_MAXINT64);
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const char *const texts[] = {
        "run\n--mem=512M\n--wall\n10s\n--uid=0\n--\nls\n-l",
        "run\n--mount\n/a:/b\n--layer=/c\n--env=A=b\n--merge\n--json\ntrue",
        "shell\n--net=proxy\n--allow\npypi.org:443\n--egress-bytes=1G",
        "run\n--cpus=1.5\n--cpu-weight=100\n--pids=18446744073709551616\n--tmp=99999999999G\nx",
        "run\n--help\n--require=user,net\n--gid=4294967296"};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_ptr_array_add(seeds, g_bytes_new_static(texts[i], strlen(texts[i])));
}
