/*
 * The pure parts: requests on the wire, the filter as a table, what is kept of output.
 */
#include "sandbox/box.h"
#include "sandbox/filter.h"
#include "sandbox/launch.h"
#include "sandbox/output.h"
#include "sandbox/spec.h"
#include "tests/sandbox/bpf_sim.h"

#include <errno.h>
#include <linux/audit.h>
#include <seccomp.h>
#include <string.h>

#define ALLOWED SECCOMP_RET_ALLOW
#define KILLED  SECCOMP_RET_KILL_PROCESS

#ifdef __x86_64__
#define NATIVE AUDIT_ARCH_X86_64
#else
#define NATIVE AUDIT_ARCH_AARCH64
#endif

static SpecOpen sample_open(void)
{
    static const guint8 filter[16] = {1, 2, 3};
    SpecOpen open = {.flags = SPEC_OPEN_HOST_ROOT | SPEC_OPEN_WORK_UPPER,
                     .uid = 1000,
                     .gid = 1001,
                     .n_root = 1,
                     .n_layers = 2,
                     .n_work = 3,
                     .n_mounts = 1,
                     .work_path = "/testbed",
                     .hostname = "sandbox",
                     .mount_paths = {"/payload"},
                     .uids = {.n = 2, .lines = {{0, 100000, 65536}, {7, 8, 9}}},
                     .limits = {.mem_bytes = 1 << 30, .pids = 5},
                     .filter = filter,
                     .filter_len = sizeof filter};
    return open;
}

static GByteArray *encoded_open(void)
{
    GByteArray *bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    SpecOpen open = sample_open();
    spec_put_open(&writer, &open);
    return bytes;
}

static void an_open_request_comes_out_as_it_went_in(void)
{
    g_autoptr(GByteArray) bytes = encoded_open();
    SpecOpen want = sample_open(), got;
    g_assert_true(spec_get_open(bytes->data, bytes->len, &got));
    g_assert_cmpuint(got.flags, ==, want.flags);
    g_assert_cmpuint(got.uid, ==, want.uid);
    g_assert_cmpuint(got.gid, ==, want.gid);
    g_assert_cmpuint(got.n_root, ==, want.n_root);
    g_assert_cmpuint(got.n_layers, ==, want.n_layers);
    g_assert_cmpuint(got.n_work, ==, want.n_work);
    g_assert_cmpstr(got.work_path, ==, want.work_path);
    g_assert_cmpstr(got.mount_paths[0], ==, want.mount_paths[0]);
    g_assert_cmpmem(&got.uids, sizeof got.uids, &want.uids, sizeof want.uids);
    g_assert_cmpmem(&got.limits, sizeof got.limits, &want.limits, sizeof want.limits);
    g_assert_cmpmem(got.filter, got.filter_len, want.filter, want.filter_len);
}

/* Every prefix and every single-byte change: refused or decoded, never read past the end (the
 * copy is exactly as long as the request, so a sanitizer sees the first byte too many). */
static void damaged_requests_are_refused_or_harmless(void)
{
    g_autoptr(GByteArray) bytes = encoded_open();
    SpecOpen open;
    SpecExec exec;
    for (guint len = 0; len < bytes->len; len++) {
        g_autofree guint8 *cut = g_memdup2(bytes->data, len);
        g_assert_false(spec_get_open(cut, len, &open));
    }
    for (guint at = 0; at < bytes->len; at++)
        for (guint value = 0; value < 256; value += 51) {
            g_autofree guint8 *copy = g_memdup2(bytes->data, bytes->len);
            copy[at] = (guint8)value;
            if (spec_get_open(copy, bytes->len, &open))
                g_assert_cmpuint(strlen(open.work_path), <, SPEC_PATH_MAX);
            g_assert_false(spec_get_exec(copy, bytes->len, &exec));
        }
}

static void an_exec_request_is_walked_in_order(void)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    SpecExec exec = {.n_argv = 2, .n_envp = 1, .n_files = 1, .cwd = "/work"}, got;
    SpecFile file = {"/tmp/x", (const guint8 *)"ab", 2, 0644}, put;
    spec_put_exec(&writer, &exec);
    spec_put_str(&writer, "sh");
    spec_put_str(&writer, "");
    spec_put_str(&writer, "A=b");
    spec_put_file(&writer, &file);
    g_assert_true(spec_get_exec(bytes->data, bytes->len, &got));
    const char *text = NULL;
    g_assert_true(spec_next_str(&got, &text));
    g_assert_cmpstr(text, ==, "sh");
    g_assert_true(spec_next_str(&got, &text));
    g_assert_cmpstr(text, ==, "");
    g_assert_true(spec_next_str(&got, &text));
    g_assert_cmpstr(text, ==, "A=b");
    g_assert_true(spec_next_file(&got, &put));
    g_assert_cmpstr(put.path, ==, "/tmp/x");
    g_assert_cmpmem(put.data, put.len, "ab", 2);
    for (guint len = 0; len < bytes->len; len++) {
        g_autofree guint8 *cut = g_memdup2(bytes->data, len);
        g_assert_false(spec_get_exec(cut, len, &got));
    }
}

static void paths_must_be_absolute_and_normal(void)
{
    static const char *const good[] = {"/", "/a", "/a/b.c", "/...", "/a/.b"};
    static const char *const bad[] = {"",   "a",   "/a/",     "//a", "/a//b",
                                      "/.", "/..", "/a/../b", "/a/."};
    for (gsize i = 0; i < G_N_ELEMENTS(good); i++)
        g_assert_true(spec_path_ok(good[i]));
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++)
        g_assert_false(spec_path_ok(bad[i]));
    g_autofree char *far = g_strnfill(SPEC_PATH_MAX, 'a');
    far[0] = '/';
    g_assert_false(spec_path_ok(far));
}

static void hostile_replies_are_refused(void)
{
    SpecReply reply = {.magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = SPEC_REPLY_DONE};
    memset(reply.what, 'x', sizeof reply.what);
    g_assert_true(spec_reply_ok(&reply, sizeof reply));
    g_assert_cmpuint(strlen(reply.what), ==, SPEC_WHAT_MAX - 1);
    g_assert_false(spec_reply_ok(&reply, sizeof reply - 1));
    reply.kind = 99;
    g_assert_false(spec_reply_ok(&reply, sizeof reply));
    reply.kind = SPEC_REPLY_NONE;
    g_assert_false(spec_reply_ok(&reply, sizeof reply));
    reply.kind = SPEC_REPLY_DONE;
    reply.start_failed = SPEC_START_OURS + 1;
    g_assert_false(spec_reply_ok(&reply, sizeof reply));
}

static guint32 decide(FilterKind kind, const char *name, guint64 a0, guint64 a1, guint64 a2)
{
    g_autoptr(GError) error = NULL;
    GBytes *program = filter_build(kind, &error);
    g_assert_no_error(error);
    struct seccomp_data data = {.nr = seccomp_syscall_resolve_name(name), .arch = NATIVE};
    data.args[0] = a0;
    data.args[1] = a1;
    data.args[2] = a2;
    g_assert_cmpint(data.nr, >=, 0);
    return bpf_sim(program, &data);
}

#define REFUSED(err) (SECCOMP_RET_ERRNO | (err))

typedef struct FilterCase {
    const char *name;
    guint64 args[3];
    guint32 want;
} FilterCase;

static const FilterCase filter_cases[] = {
    {"read", {0}, ALLOWED},
    {"openat", {0}, ALLOWED},
    {"execve", {0}, ALLOWED},
    {"futex", {0}, ALLOWED},
    {"unshare", {0}, REFUSED(EPERM)},
    {"setns", {0}, REFUSED(EPERM)},
    {"mount", {0}, REFUSED(EPERM)},
    {"ptrace", {0}, REFUSED(EPERM)},
    {"bpf", {0}, REFUSED(EPERM)},
    {"keyctl", {0}, REFUSED(EPERM)},
    {"clone3", {0}, REFUSED(ENOSYS)},
    {"io_uring_setup", {0}, REFUSED(ENOSYS)},
    {"clone", {0x11}, ALLOWED},
    {"clone", {0x3d0f00}, ALLOWED},
    {"clone", {0x10000011}, REFUSED(EPERM)},
    {"clone", {0x20000}, REFUSED(EPERM)},
    {"clone", {0x02000000}, REFUSED(EPERM)},
    {"clone", {0x40000000}, REFUSED(EPERM)},
    {"clone", {1ull << 32 | 0x11}, ALLOWED},
    {"clone", {1ull << 32 | 0x10000000}, REFUSED(EPERM)},
    {"personality", {0}, ALLOWED},
    {"personality", {8}, ALLOWED},
    {"personality", {0xffffffff}, ALLOWED},
    {"personality", {0x0400000}, REFUSED(EPERM)},
    {"personality", {0x40000}, REFUSED(EPERM)},
    {"socket", {1, 1, 0}, ALLOWED},
    {"socket", {2, 1, 0}, ALLOWED},
    {"socket", {10, 2, 17}, ALLOWED},
    {"socket", {2, 1 | 02000000, 6}, ALLOWED},
    {"socket", {16, 3, 0}, ALLOWED},
    {"socket", {16, 3, 9}, REFUSED(EPERM)},
    {"socket", {16, 2, 15}, REFUSED(EAFNOSUPPORT)},
    {"socket", {2, 3, 1}, REFUSED(EPERM)},
    {"socket", {2, 3 | 02000000, 1}, REFUSED(EPERM)},
    {"socket", {2, 10, 0}, REFUSED(EPERM)},
    {"socket", {2, 1, 262}, REFUSED(EPROTONOSUPPORT)},
    {"socket", {40, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"socket", {38, 5, 0}, REFUSED(EAFNOSUPPORT)},
    {"socket", {1ull << 32 | 40, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"socketpair", {1, 1, 0}, ALLOWED},
    {"socketpair", {2, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"ioctl", {0, 0x5401, 0}, ALLOWED},
    {"ioctl", {0, 0x5412, 0}, REFUSED(EPERM)},
    {"ioctl", {0, 1ull << 32 | 0x5412, 0}, REFUSED(EPERM)},
    {"ioctl", {0, 0x5423, 0}, REFUSED(EPERM)},
    {"prctl", {15}, ALLOWED},
    {"prctl", {35}, REFUSED(EPERM)},
    {"prctl", {22, 1}, REFUSED(EPERM)},
    {"prctl", {22, 2}, ALLOWED},
    {"prlimit64", {0}, ALLOWED},
    {"prlimit64", {1}, REFUSED(EPERM)},
    {"prlimit64", {4711}, ALLOWED},
    {"setpriority", {0, 4711}, ALLOWED},
    {"shmget", {0}, ALLOWED},
};

/* What namespaces would hold is refused where there are none. */
static const FilterCase bare_cases[] = {
    {"socket", {1, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"socket", {2, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"socket", {10, 1, 0}, REFUSED(EAFNOSUPPORT)},
    {"socket", {16, 3, 0}, REFUSED(EAFNOSUPPORT)},
    {"socketpair", {1, 1, 0}, ALLOWED},
    {"prlimit64", {0}, ALLOWED},
    {"prlimit64", {4711}, REFUSED(EPERM)},
    {"setpriority", {0, 0}, ALLOWED},
    {"setpriority", {0, 4711}, REFUSED(EPERM)},
    {"setpriority", {2, 0}, REFUSED(EPERM)},
    {"ioprio_set", {1, 0}, ALLOWED},
    {"ioprio_set", {1, 4711}, REFUSED(EPERM)},
    {"ioprio_set", {3, 0}, REFUSED(EPERM)},
    {"sched_setaffinity", {0}, ALLOWED},
    {"sched_setaffinity", {4711}, REFUSED(EPERM)},
    {"shmget", {0}, REFUSED(EPERM)},
    {"msgrcv", {0}, REFUSED(EPERM)},
    {"mq_open", {0}, REFUSED(EPERM)},
    {"openat", {0}, ALLOWED},
    {"mount", {0}, REFUSED(EPERM)},
};

static void check_cases(FilterKind kind, const FilterCase *rows, gsize n)
{
    for (const FilterCase *row = rows; row < rows + n; row++) {
        guint32 got = decide(kind, row->name, row->args[0], row->args[1], row->args[2]);
        if (got != row->want)
            g_test_fail_printf("%s(%#lx, %#lx, %#lx): %#x instead of %#x", row->name, row->args[0],
                               row->args[1], row->args[2], got, row->want);
    }
}

static void the_filter_decides_as_the_table_says(void)
{
    check_cases(FILTER_BOX, filter_cases, G_N_ELEMENTS(filter_cases));
}

static void without_namespaces_the_filter_decides_as_its_table_says(void)
{
    check_cases(FILTER_BARE, bare_cases, G_N_ELEMENTS(bare_cases));
}

/* Every rule that refuses by name really does, and every number nobody wrote down is unknown. */
static void every_name_rule_holds_and_the_rest_is_unknown(void)
{
    static const struct {
        const char *name;
        int err;
    } rows[] = {
#define ALLOW(...)
#define REFUSE(name, err, why) {#name, err},
#define WHEN(...)
#define WHEN2(...)
#define WHEN_BOX(...)
#define WHEN_BARE(...)
#define OTHERWISE(...)
#define OTHERWISE_BARE(...)
#include "sandbox/syscalls.def"
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        if (seccomp_syscall_resolve_name(rows[i].name) >= 0)
            g_assert_cmpuint(decide(FILTER_BOX, rows[i].name, 0, 0, 0), ==,
                             REFUSED((guint)rows[i].err));
    for (int nr = 600; nr < 2000; nr += 7) {
        struct seccomp_data data = {.nr = nr, .arch = NATIVE};
        g_assert_cmpuint(bpf_sim(filter_build(FILTER_BOX, NULL), &data), ==, REFUSED(ENOSYS));
    }
}

static void foreign_tables_are_killed_and_nothing_else_is(void)
{
    GBytes *program = filter_build(FILTER_BOX, NULL);
    struct seccomp_data data = {.nr = 1, .arch = AUDIT_ARCH_I386};
    g_assert_cmpuint(bpf_sim(program, &data), ==, SECCOMP_RET_KILL_PROCESS);
    for (int nr = 0; nr < 600; nr++) {
        data = (struct seccomp_data){.nr = nr, .arch = NATIVE};
        g_assert_cmpuint(bpf_sim(program, &data), !=, SECCOMP_RET_KILL_PROCESS);
    }
}

static GBytes *kept(guint64 keep, const char *pieces[], gboolean *ret_truncated)
{
    Output output;
    output_init(&output, keep);
    for (; *pieces != NULL; pieces++)
        output_add(&output, *pieces, strlen(*pieces));
    *ret_truncated = FALSE;
    return output_finish(&output, ret_truncated);
}

static void output_keeps_head_and_tail(void)
{
    gboolean truncated;
    g_autoptr(GBytes) whole = kept(8, (const char *[]){"abcd", "efgh", NULL}, &truncated);
    g_assert_cmpmem(g_bytes_get_data(whole, NULL), (int)g_bytes_get_size(whole), "abcdefgh", 8);
    g_assert_false(truncated);
    g_autoptr(GBytes) cut =
        kept(8, (const char *[]){"abc", "defghijk", "lmnop", "q", NULL}, &truncated);
    static const char want[] = "abcd\n[... 9 bytes not kept ...]\nnopq";
    g_assert_cmpmem(g_bytes_get_data(cut, NULL), (int)g_bytes_get_size(cut), want,
                    (int)strlen(want));
    g_assert_true(truncated);
}

static void names_of_enums_are_distinct(void)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
    for (int i = BOX_NONE; i <= BOX_START_ERROR; i++)
        g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)box_outcome_str((BoxOutcome)i)));
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1)
        g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)box_layer_str((BoxLayer)bit)));
    g_assert_cmpstr(box_outcome_str(BOX_NONE), ==, "none");
}

#define ADD(fn) g_test_add_func("/units/" #fn, fn)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD(an_open_request_comes_out_as_it_went_in);
    ADD(damaged_requests_are_refused_or_harmless);
    ADD(an_exec_request_is_walked_in_order);
    ADD(paths_must_be_absolute_and_normal);
    ADD(hostile_replies_are_refused);
    ADD(the_filter_decides_as_the_table_says);
    ADD(without_namespaces_the_filter_decides_as_its_table_says);
    ADD(every_name_rule_holds_and_the_rest_is_unknown);
    ADD(foreign_tables_are_killed_and_nothing_else_is);
    ADD(output_keeps_head_and_tail);
    ADD(names_of_enums_are_distinct);
    return g_test_run();
}
