/*
 * What the keeper, init and the library read from one another: requests and replies. The first byte
 * chooses the reader.
 *
 * Invariants:
 *   1. What is accepted can be walked to its last byte, and its sizes are within spec.h.
 *   2. What is accepted means the same after it has been written again.
 */
#include "tests/sandbox/fuzz/fuzz.h"

#include "sandbox/launch.h"
#include "sandbox/spec.h"

#include <string.h>

static void same_bytes(const GByteArray *again, const uint8_t *data, size_t size)
{
    g_assert_cmpuint(again->len, ==, size);
    g_assert_cmpint(memcmp(again->data, data, size), ==, 0);
}

static void read_open(const uint8_t *data, size_t size)
{
    SpecOpen open;
    if (!spec_get_open(data, size, &open))
        return;
    g_assert_cmpuint(open.n_root, <=, SPEC_LAYERS_MAX);
    g_assert_cmpuint(open.n_layers, <=, SPEC_LAYERS_MAX);
    g_assert_cmpuint(open.n_work, <=, SPEC_LAYERS_MAX);
    g_assert_cmpuint(open.n_mounts, <=, SPEC_MOUNTS_MAX);
    g_assert_cmpuint(open.n_gens, <=, SPEC_GENS_MAX);
    g_assert_cmpuint(open.uids.n, <=, SPEC_MAPS_MAX);
    g_assert_cmpuint(open.gids.n, <=, SPEC_MAPS_MAX);
    g_assert_true(spec_path_ok(open.work_path));
    for (uint32_t i = 0; i < open.n_mounts; i++)
        g_assert_true(spec_path_ok(open.mount_paths[i]));
    g_assert_true(open.filter_len == 0 || (open.filter >= data && open.filter_len <= size &&
                                           open.filter + open.filter_len <= data + size));
    g_autoptr(GByteArray) again = g_byte_array_new();
    SpecWriter writer = launch_writer(again);
    spec_put_open(&writer, &open);
    same_bytes(again, data, size);
}

static void read_exec(const uint8_t *data, size_t size)
{
    SpecExec exec;
    if (!spec_get_exec(data, size, &exec))
        return;
    g_assert_cmpuint(exec.n_argv, <=, SPEC_ARGV_MAX);
    g_assert_cmpuint(exec.n_envp, <=, SPEC_ENVP_MAX);
    g_assert_cmpuint(exec.n_files, <=, SPEC_FILES_MAX);
    g_assert_true(spec_path_ok(exec.cwd));
    g_autoptr(GByteArray) again = g_byte_array_new();
    SpecWriter writer = launch_writer(again);
    SpecExec walk = exec;
    const char *text;
    SpecFile file;
    spec_put_exec(&writer, &exec);
    for (uint32_t i = 0; i < exec.n_argv + exec.n_envp; i++) {
        g_assert_true(spec_next_str(&walk, &text));
        spec_put_str(&writer, text);
    }
    for (uint32_t i = 0; i < exec.n_files; i++) {
        g_assert_true(spec_next_file(&walk, &file));
        g_assert_true(spec_path_ok(file.path));
        spec_put_file(&writer, &file);
    }
    same_bytes(again, data, size);
}

static void read_small(const uint8_t *data, size_t size)
{
    SpecMap uids, gids;
    SpecTree tree;
    SpecOrder order;
    uint32_t n_gens;
    if (spec_get_idmap(data, size, &uids, &gids)) {
        g_assert_cmpuint(uids.n, <=, SPEC_MAPS_MAX);
        g_assert_cmpuint(gids.n, <=, SPEC_MAPS_MAX);
    }
    if (spec_get_tree(data, size, &tree))
        g_assert_cmpuint(tree.n_gens, <=, SPEC_GENS_MAX + 1);
    if (spec_get_copy(data, size, &n_gens))
        g_assert_cmpuint(n_gens, <=, SPEC_GENS_MAX + 1);
    if (spec_get_order(data, size, &order))
        g_assert_cmpint(order, <=, SPEC_ORDER_THAW);
}

static void read_reply(const uint8_t *data, size_t size)
{
    SpecReply reply;
    memset(&reply, 'x', sizeof reply);
    memcpy(&reply, data, MIN(size, sizeof reply));
    if (!spec_reply_ok(&reply, size))
        return;
    g_assert_cmpuint(size, ==, sizeof reply);
    g_assert_cmpuint(reply.kind, !=, SPEC_REPLY_NONE);
    g_assert_cmpuint(reply.kind, <=, SPEC_REPLY_LISTENER);
    g_assert_nonnull(memchr(reply.what, '\0', sizeof reply.what));
}

static void (*const readers[])(const uint8_t *data, size_t size) = {read_open, read_exec,
                                                                    read_small, read_reply};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    g_autofree guint8 *exact = g_memdup2(data + 1, size - 1);
    readers[data[0] % G_N_ELEMENTS(readers)](exact, size - 1);
    return 0;
}

static void put_open(SpecWriter *writer)
{
    static const guint8 filter[16] = {6, 0, 0, 0};
    SpecOpen open = {.flags = SPEC_OPEN_HOST_ROOT,
                     .uid = 1000,
                     .n_root = 1,
                     .n_layers = 2,
                     .n_work = 1,
                     .n_mounts = 2,
                     .work_path = "/testbed",
                     .hostname = "sandbox",
                     .mount_paths = {"/payload", "/a/b"},
                     .uids = {.n = 2, .lines = {{0, 100000, 65536}, {7, 8, 9}}},
                     .gids = {.n = 1, .lines = {{0, 100000, 65536}}},
                     .filter = filter,
                     .filter_len = sizeof filter};
    spec_put_open(writer, &open);
}

static void put_exec(SpecWriter *writer)
{
    SpecExec exec = {.n_argv = 2, .n_envp = 1, .n_files = 2, .cwd = "/work"};
    SpecFile file = {"/tmp/x", (const guint8 *)"ab", 2, 0644};
    spec_put_exec(writer, &exec);
    spec_put_str(writer, "sh");
    spec_put_str(writer, "");
    spec_put_str(writer, "A=b");
    spec_put_file(writer, &file);
    spec_put_file(writer, &file);
}

static void put_reply(GByteArray *bytes)
{
    SpecReply reply = {.magic = SPEC_MAGIC_REPLY,
                       .version = SPEC_VERSION,
                       .kind = SPEC_REPLY_DONE,
                       .has_status = 1};
    g_strlcpy(reply.what, "mount /proc", sizeof reply.what);
    g_byte_array_append(bytes, (const guint8 *)&reply, sizeof reply);
}

gboolean fuzz_seed(guint i, GByteArray *ret_bytes)
{
    static const guint8 reader_of[] = {0, 1, 2, 2, 2, 2, 3};
    const SpecMap map = {.n = 1, .lines = {{0, 100000, 65536}}};
    const SpecTree tree = {SPEC_TREE_FREEZE, 2, 1 << 20, 100};
    SpecWriter writer = launch_writer(ret_bytes);
    if (i >= G_N_ELEMENTS(reader_of))
        return FALSE;
    g_byte_array_append(ret_bytes, &reader_of[i], 1);
    if (i == 0)
        put_open(&writer);
    else if (i == 1)
        put_exec(&writer);
    else if (i == 2)
        spec_put_idmap(&writer, &map, &map);
    else if (i == 3)
        spec_put_tree(&writer, &tree);
    else if (i == 4)
        spec_put_copy(&writer, 3);
    else if (i == 5)
        spec_put_order(&writer, SPEC_ORDER_FREEZE);
    else
        put_reply(ret_bytes);
    return TRUE;
}
