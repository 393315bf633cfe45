/*
 * The options of the box tool: words, separated by NULs.
 */
#include "tests/sandbox/fuzz/fuzz.h"

#include "sandbox/box_options.h"

#include <string.h>

#define WORDS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_malloc0(size + 1);
    char run[] = "run", *argv[WORDS_MAX + 2] = {run};
    int argc = 1;
    if (size > 0)
        memcpy(text, data, size);
    for (char *at = text; at < text + size && argc <= WORDS_MAX; at += strlen(at) + 1)
        argv[argc++] = at;
    g_autoptr(GError) error = NULL;
    g_auto(BoxOptions) options = {0};
    if (!box_options_parse(argc, argv, &options, &error))
        g_assert_nonnull(error);
    else
        g_assert_no_error(error);
    return 0;
}

gboolean fuzz_seed(guint i, GByteArray *ret_bytes)
{
    static const struct {
        const char *words;
        gsize size;
    } seeds[] = {
#define SEED(text) {text, sizeof text}
        SEED("--wall\00010s\0--mem\0001g\0--\0true"),
        SEED("--cpu=500ms\0--pids=64\0--json\0--\0sh\0-c\0exit 3"),
        SEED("--root\0/\0--layer\0/tmp\0--mount\0/usr:/mnt\0--env\0A=b\0true"),
        SEED("--file\0/etc/passwd:/x\0--uid\0001000\0--gid\0001000\0--net\0none\0true"),
        SEED("--require\0net,seccomp\0--allow\0pypi.org:443\0--cwd\0/work\0true"),
        SEED("--help"),
        SEED("--mem\00018446744073709551616g\0true"),
        SEED("--nonsense\0-x\0--wall"),
    };
    if (i >= G_N_ELEMENTS(seeds))
        return FALSE;
    g_byte_array_append(ret_bytes, (const guint8 *)seeds[i].words, (guint)seeds[i].size);
    return TRUE;
}
