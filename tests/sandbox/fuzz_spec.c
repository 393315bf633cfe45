/*
 * Requests and replies between library and assay-box, as the other side might send them.
 *
 * What must hold: nothing is read past the end; what is accepted has the promised shape; and there
 * is one spelling only: what was accepted, written again, gives the same bytes.
 */
#include "sandbox/launch.h"
#include "sandbox/spec.h"
#include "tests/sandbox/fuzz.h"

#include <string.h>

static void expect_same(GByteArray *again, const guint8 *data, gsize len)
{
    g_assert_cmpmem(again->data, again->len, data, (guint)len);
}

static void check_path(const char *path)
{
    g_assert_true(g_path_is_absolute(path));
    g_assert_cmpuint(strlen(path), <, SPEC_PATH_MAX);
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    g_assert_false(g_strv_contains((const char *const *)parts, ".."));
    g_assert_false(g_strv_contains((const char *const *)parts, "."));
}

static void try_open(const guint8 *data, gsize len)
{
    SpecOpen open;
    if (!spec_get_open(data, len, &open))
        return;
    g_autoptr(GByteArray) again = g_byte_array_new();
    SpecWriter writer = launch_writer(again);
    check_path(open.work_path);
    for (guint i = 0; i < open.n_mounts; i++)
        check_path(open.mount_paths[i]);
    g_assert_cmpuint(open.uids.n, <=, SPEC_MAPS_MAX);
    g_assert_cmpuint(open.filter_len % 8, ==, 0);
    spec_put_open(&writer, &open);
    expect_same(again, data, len);
}

static void try_exec(const guint8 *data, gsize len)
{
    SpecExec exec;
    if (!spec_get_exec(data, len, &exec))
        return;
    g_autoptr(GByteArray) again = g_byte_array_new();
    SpecWriter writer = launch_writer(again);
    SpecExec walk = exec;
    check_path(exec.cwd);
    spec_put_exec(&writer, &exec);
    for (guint i = 0; i < exec.n_argv + exec.n_envp; i++) {
        const char *text = NULL;
        g_assert_true(spec_next_str(&walk, &text));
        spec_put_str(&writer, text);
    }
    for (guint i = 0; i < exec.n_files; i++) {
        SpecFile file;
        g_assert_true(spec_next_file(&walk, &file));
        check_path(file.path);
        g_assert_cmpuint(file.mode, <=, 0777);
        spec_put_file(&writer, &file);
    }
    expect_same(again, data, len);
}

static void try_small(const guint8 *data, gsize len)
{
    g_autoptr(GByteArray) again = g_byte_array_new();
    SpecWriter writer = launch_writer(again);
    SpecMap uids, gids;
    SpecTree tree;
    SpecOrder order;
    guint32 n_gens;
    guint n = 0;
    if (spec_get_idmap(data, len, &uids, &gids)) {
        spec_put_idmap(&writer, &uids, &gids);
        n++;
    }
    if (spec_get_tree(data, len, &tree)) {
        spec_put_tree(&writer, &tree);
        n++;
    }
    if (spec_get_copy(data, len, &n_gens)) {
        spec_put_copy(&writer, n_gens);
        n++;
    }
    if (spec_get_order(data, len, &order)) {
        spec_put_order(&writer, order);
        n++;
    }
    g_assert_cmpuint(n, <=, 1); /* no request is two */
    if (n == 1)
        expect_same(again, data, len);
}

static void try_reply(const guint8 *data, gsize len)
{
    SpecReply reply = {0};
    memcpy(&reply, data, MIN(len, sizeof reply));
    if (!spec_reply_ok(&reply, len))
        return;
    g_assert_cmpuint(len, ==, sizeof reply);
    g_assert_cmpuint(strlen(reply.what), <, SPEC_WHAT_MAX);
    g_assert_cmpuint(reply.start_failed, <=, SPEC_START_OURS);
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    try_open(data, len);
    try_exec(data, len);
    try_small(data, len);
    try_reply(data, len);
    return 0;
}

static void seed_open(SpecWriter *writer)
{
    static const guint8 filter[16] = {6, 0, 0, 0, 0, 0, 0xff, 0x7f};
    const SpecOpen open = {.flags = SPEC_OPEN_HOST_ROOT | SPEC_OPEN_SETGROUPS,
                           .uid = 1000,
                           .gid = 1000,
                           .n_layers = 1,
                           .n_work = 2,
                           .n_mounts = 2,
                           .work_path = "/testbed",
                           .hostname = "sandbox",
                           .mount_paths = {"/payload", "/opt/x.y"},
                           .uids = {.n = 2, .lines = {{0, 100000, 65536}, {7, 8, 9}}},
                           .gids = {.n = 1, .lines = {{0, 100000, 65536}}},
                           .filter = filter,
                           .filter_len = sizeof filter};
    spec_put_open(writer, &open);
}

static void seed_exec(SpecWriter *writer)
{
    const SpecExec exec = {.n_argv = 2, .n_envp = 1, .n_files = 1, .cwd = "/testbed"};
    const SpecFile file = {"/tmp/a/b", (const guint8 *)"text", 4, 0644};
    spec_put_exec(writer, &exec);
    spec_put_str(writer, "/bin/sh");
    spec_put_str(writer, "");
    spec_put_str(writer, "PATH=/bin");
    spec_put_file(writer, &file);
}

static void seed_idmap(SpecWriter *writer)
{
    const SpecMap map = {.n = 1, .lines = {{0, 1, 2}}};
    spec_put_idmap(writer, &map, &map);
}

static void seed_tree(SpecWriter *writer)
{
    const SpecTree tree = {.n_gens = 3, .disk_bytes = 1 << 20, .inodes = 100};
    spec_put_tree(writer, &tree);
}

static void seed_order(SpecWriter *writer)
{
    spec_put_order(writer, SPEC_ORDER_FREEZE);
}

static void seed_copy(SpecWriter *writer)
{
    spec_put_copy(writer, 2);
}

static void seed_reply(SpecWriter *writer)
{
    SpecReply reply = {.magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = SPEC_REPLY_DONE};
    memset(reply.what, 'x', sizeof reply.what);
    writer->put(writer->ctx, &reply, sizeof reply);
}

void fuzz_seeds(GPtrArray *seeds)
{
    static void (*const makers[])(SpecWriter *) = {seed_open,  seed_exec, seed_idmap, seed_tree,
                                                   seed_order, seed_copy, seed_reply};
    for (gsize i = 0; i < G_N_ELEMENTS(makers); i++) {
        GByteArray *bytes = g_byte_array_new();
        SpecWriter writer = launch_writer(bytes);
        makers[i](&writer);
        g_ptr_array_add(seeds, g_byte_array_free_to_bytes(bytes));
    }
}
