/*
 * The laboratory of the live sandbox tests.
 *
 * Invariant: nothing on the host is touched outside a directory of our own; host values are only
 * read.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "base/tree.h"
#include "sandbox/box_ids.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BARE_PAYLOAD "/tmp/payload"

#define USER_ID 61234 /* what --as-user drops to: nobody has it */

static char *lab_dir;
static int payload_fd = -1;
static gboolean is_user, is_shared, is_bare;
static BoxMount payload_mount;
static void *payload_data;
static gsize payload_len;

static void copy_in(const char *from, const char *name)
{
    g_autofree char *to = g_build_filename(lab_dir, name, NULL);
    g_autofree char *data = NULL;
    gsize len = 0;
    g_assert_true(g_file_get_contents(from, &data, &len, NULL));
    g_assert_true(g_file_set_contents(to, data, (gssize)len, NULL));
    g_assert_cmpint(chmod(to, 0755), ==, 0);
}

static gboolean skip_all(const char *why)
{
    printf("1..0 # SKIP %s\n", why);
    return FALSE;
}

static gboolean take_flag(int *argc, char ***argv, const char *flag)
{
    gboolean found = FALSE;
    int kept = 0;
    for (int i = 0; i < *argc; i++) {
        if (g_str_equal((*argv)[i], flag))
            found = TRUE;
        else
            (*argv)[kept++] = (*argv)[i];
    }
    *argc = kept;
    return found;
}

gboolean lab_is_wanted(int *argc, char **argv, const char *suite, gboolean *ret_is_long)
{
    const char *wanted = g_getenv("ASSAY_OPTIN");
    *ret_is_long = take_flag(argc, &argv, "--long");
    g_auto(GStrv) names = g_strsplit(wanted != NULL ? wanted : "", ",", -1);
    if (!*ret_is_long || g_strcmp0(wanted, "1") == 0 ||
        g_strv_contains((const char *const *)names, suite))
        return TRUE;
    g_autofree char *why = g_strdup_printf("opt-in: ASSAY_OPTIN=%s", suite);
    return skip_all(why);
}

/* Namespaces may be refused here; ASSAY_BOX_MUST_WORK=1 makes that a failure. */
static gboolean boxes_work(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = lab_spec(0);
    g_autoptr(Box) box = box_open(&spec, &error);
    if (box != NULL)
        return TRUE;
    if (g_strcmp0(g_getenv("ASSAY_BOX_MUST_WORK"), "1") == 0)
        g_error("boxes must work here, but: %s", error->message);
    g_autofree char *why = g_strdup_printf("no boxes on this host: %s", error->message);
    return skip_all(why);
}

gboolean lab_init(int *argc, char ***argv)
{
    gboolean as_user = take_flag(argc, argv, "--as-user");
    is_shared = take_flag(argc, argv, "--shared");
    is_bare = take_flag(argc, argv, "--bare");
    g_test_init(argc, argv, NULL);
    if (as_user && geteuid() != 0)
        return skip_all("already an ordinary user: the other run covers it");

    if (is_shared && geteuid() != 0)
        return skip_all("one id cannot be shared: the plain run covers it");

    if (is_shared || is_bare)
        g_setenv("ASSAY_BOX_FORCE", is_shared ? "shared" : "landlock", TRUE);
    g_setenv("ASSAY_CANARY", "canary-5e1f", TRUE);
    lab_dir = g_dir_make_tmp("assay-lab-XXXXXX", NULL);
    g_assert_nonnull(lab_dir);
    g_assert_cmpint(chmod(lab_dir, 0755), ==, 0);
    copy_in(g_getenv("ASSAY_TEST_PAYLOAD"), "payload");
    copy_in(g_getenv("ASSAY_TEST_BOX"), "assay-box");
    if (g_getenv("ASSAY_TEST_EGRESS") != NULL)
        copy_in(g_getenv("ASSAY_TEST_EGRESS"), "assay-egress");
    if (g_getenv("ASSAY_TEST_TOOL") != NULL) {
        copy_in(g_getenv("ASSAY_TEST_TOOL"), "box-tool");
        g_autofree char *tool = g_build_filename(lab_dir, "box-tool", NULL);
        g_setenv("ASSAY_TEST_TOOL", tool, TRUE);
    }
    g_setenv("ASSAY_LIBEXEC", lab_dir, TRUE);
    if (as_user) {
        is_user = TRUE;
        g_assert_cmpint(chown(lab_dir, USER_ID, USER_ID), ==, 0);
        g_assert_cmpint(setgid(USER_ID), ==, 0);
        g_assert_cmpint(setuid(USER_ID), ==, 0);
        prctl(PR_SET_DUMPABLE, 1);
    }
    is_user = geteuid() != 0;
    payload_fd = open(lab_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    payload_mount = (BoxMount){payload_fd, "/payload"};
    g_assert_true(g_file_get_contents(g_getenv("ASSAY_TEST_PAYLOAD"), (char **)&payload_data,
                                      &payload_len, NULL));
    return boxes_work();
}

int lab_end(int status)
{
    box_shutdown();
    close(payload_fd);
    g_free(payload_data);
    tree_remove(AT_FDCWD, lab_dir, NULL);
    return status;
}

gboolean lab_is_user(void)
{
    return is_user;
}

gboolean lab_is_shared(void)
{
    return is_shared;
}

gboolean lab_is_bare(void)
{
    return is_bare;
}

guint64 lab_ms(guint64 ms)
{
    const char *slow = g_getenv("ASSAY_TEST_SLOW");
    return slow == NULL ? ms : ms * g_ascii_strtoull(slow, NULL, 10);
}

BoxSpec lab_spec(guint inside_uid)
{
    const guint64 mib = 1 << 20;
    BoxSpec spec = {.work_path = "/testbed",
                    .uid = inside_uid,
                    .gid = inside_uid,
                    .slot = 100,
                    .mounts = &payload_mount,
                    .n_mounts = is_bare ? 0 : 1,
                    .allow_degraded = is_bare,
                    .limits = box_limits_default()};
    spec.limits.mem_bytes = 128 * mib;
    spec.limits.disk_bytes = 16 * mib;
    spec.limits.inodes = 2000;
    spec.limits.tmp_bytes = 16 * mib;
    spec.limits.pids = 64;
    spec.limits.wall_ms = lab_ms(20000);
    spec.limits.output_bytes_keep = 1 * mib;
    spec.limits.output_bytes_kill = 8 * mib;
    return spec;
}

Box *lab_open(const BoxSpec *spec)
{
    g_autoptr(GError) error = NULL;
    Box *box = box_open(spec, &error);
    g_assert_no_error(error);
    return box;
}

/* Without a mount namespace the payload is a file that travels with each command. */
static char *exec_text(Box *box, const char *const *argv, BoxResult *ret_result)
{
    g_autoptr(GError) error = NULL;
    const BoxFile payload = {BARE_PAYLOAD, payload_data, payload_len, 0755};
    BoxCommand command = {.argv = argv, .files = &payload, .n_files = is_bare ? 1 : 0};
    gboolean ok = box_exec(box, &command, ret_result, &error);
    g_assert_no_error(error);
    g_assert_true(ok);
    gsize len = 0;
    const char *data = g_bytes_get_data(ret_result->out, &len);
    while (len > 0 && data[len - 1] == '\n')
        len--;
    return g_strndup(data != NULL ? data : "", len);
}

char *lab_sh(Box *box, const char *line, BoxResult *ret_result)
{
    g_auto(GStrv) parts = g_strsplit(line, "/payload/payload", -1);
    g_autofree char *moved = is_bare ? g_strjoinv(BARE_PAYLOAD, parts) : g_strdup(line);
    g_autofree char *inside = box_text_inside(box, moved);
    const char *const argv[] = {"/bin/sh", "-c", inside, NULL};
    return exec_text(box, argv, ret_result);
}

char *lab_try(Box *box, const char *word, BoxResult *ret_result)
{
    const char *const argv[] = {is_bare ? BARE_PAYLOAD : "/payload/payload", word, NULL};
    return exec_text(box, argv, ret_result);
}

static void add_file(GString *picture, const char *path)
{
    g_autofree char *text = NULL;
    if (g_file_get_contents(path, &text, NULL, NULL))
        g_string_append_printf(picture, "%s: %s\n", path, text);
}

static void add_stat(GString *picture, const char *path)
{
    struct stat st;
    g_assert_cmpint(stat(path, &st), ==, 0);
    g_string_append_printf(picture, "%s %lu %ld %ld.%ld %ld.%ld\n", path, st.st_ino, st.st_size,
                           st.st_mtim.tv_sec, st.st_mtim.tv_nsec, st.st_ctim.tv_sec,
                           st.st_ctim.tv_nsec);
}

char *lab_host_picture(void)
{
    static const char *const files[] = {"/proc/sys/kernel/core_pattern",
                                        "/proc/sys/kernel/modprobe",
                                        "/proc/sys/vm/overcommit_memory",
                                        "/proc/sys/net/ipv4/ip_forward",
                                        "/proc/sys/kernel/hostname",
                                        "/proc/sys/user/max_user_namespaces",
                                        "/proc/swaps"};
    g_autoptr(GString) picture = g_string_new(NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(files); i++)
        add_file(picture, files[i]);
    g_autofree char *mounts = NULL;
    g_assert_true(g_file_get_contents("/proc/self/mountinfo", &mounts, NULL, NULL));
    g_string_append(picture, mounts);
    g_autofree char *program = g_build_filename(lab_dir, "assay-box", NULL);
    add_stat(picture, program);
    add_stat(picture, "/usr/bin/env");
    g_autoptr(GArray) pids = lab_box_pids(100);
    guint commands = 0; /* inits are staged ahead: their number says nothing */
    for (guint i = 0; i < pids->len; i++)
        commands += !lab_is_ours(g_array_index(pids, int, i));
    g_string_append_printf(picture, "commands %u\n", commands);
    return g_string_free(g_steal_pointer(&picture), FALSE);
}

/* Is this process, as its status file has it, a descendant of ours? */
static gboolean descends(const char *status)
{
    g_autofree char *text = g_strdup(status);
    for (int depth = 0; text != NULL && depth < 16; depth++) {
        const char *line = strstr(text, "\nPPid:");
        gint64 parent = line == NULL ? 0 : g_ascii_strtoll(line + 6, NULL, 10);
        if (parent == getpid())
            return TRUE;
        g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/status", parent);
        g_clear_pointer(&text, g_free);
        if (parent > 1)
            g_file_get_contents(path, &text, NULL, NULL);
    }
    return FALSE;
}

static gboolean belongs(const char *pid, guint slot)
{
    g_autofree char *dir = g_build_filename("/proc", pid, NULL);
    g_autofree char *status_path = g_build_filename(dir, "status", NULL);
    g_autofree char *status = NULL;
    if (!g_file_get_contents(status_path, &status, NULL, NULL))
        return FALSE;
    const char *uid_line = strstr(status, "\nUid:");
    guint64 uid = uid_line == NULL ? 0 : g_ascii_strtoull(uid_line + 5, NULL, 10);
    guint64 base = BOX_ID_BASE;
    if (!is_shared && !is_bare) /* those have the store's ids */
        base += (slot + 1) * (guint64)BOX_ID_COUNT;
    gboolean fits = is_user ? uid == geteuid() && g_ascii_strtoll(pid, NULL, 10) != getpid()
                            : uid >= base && uid < base + BOX_ID_COUNT;
    return fits && descends(status); /* other programs have boxes too */
}

GArray *lab_box_pids(guint slot)
{
    GArray *pids = g_array_new(FALSE, FALSE, sizeof(int));
    g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(dir)) != NULL) {
        if (!g_ascii_isdigit(name[0]) || !belongs(name, slot))
            continue;
        int pid = (int)g_ascii_strtoll(name, NULL, 10);
        g_array_append_val(pids, pid);
    }
    return pids;
}

gboolean lab_is_ours(int pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/cmdline", pid);
    g_autofree char *word = NULL;
    gsize len = 0;
    if (!g_file_get_contents(path, &word, &len, NULL) || len == 0)
        return TRUE;
    return g_str_equal(word, "assay-box");
}

gboolean lab_wait_gone(GArray *pids, int timeout_ms)
{
    gboolean gone = TRUE;
    for (guint i = 0; i < pids->len; i++) {
        AUTO_FD fd = (int)syscall(SYS_pidfd_open, g_array_index(pids, int, i), 0);
        if (fd < 0)
            continue; /* gone already */
        struct pollfd polled = {.fd = fd, .events = POLLIN};
        gone = gone && poll(&polled, 1, timeout_ms) == 1;
    }
    return gone;
}

guint lab_count_fds(void)
{
    guint n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    while (dir != NULL && g_dir_read_name(dir) != NULL)
        n++;
    return n;
}

/* Each is below our own group, wherever that is. */
static guint count_groups_at(const char *mount, const char *prefix)
{
    g_autofree char *text = NULL;
    guint n = 0;
    g_assert_true(g_file_get_contents("/proc/self/cgroup", &text, NULL, NULL));
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GHashTable) paths = g_hash_table_new(g_str_hash, g_str_equal);
    for (char **line = lines; *line != NULL; line++) {
        const char *path = strrchr(*line, ':');
        if (path == NULL || !g_hash_table_add(paths, (gpointer)(gsize)(path + 1)))
            continue;
        g_autofree char *full = g_build_filename(mount, path + 1, NULL);
        g_autoptr(GDir) dir = g_dir_open(full, 0, NULL);
        const char *name;
        while (dir != NULL && (name = g_dir_read_name(dir)) != NULL)
            n += g_str_has_prefix(name, prefix);
    }
    return n;
}

guint lab_count_groups(int owner)
{
    static const char *const tops[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified",
                                       "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"};
    g_autofree char *prefix = g_strdup_printf("assay-box-%d-", owner);
    guint n = 0;
    for (gsize i = 0; i < G_N_ELEMENTS(tops); i++)
        n += count_groups_at(tops[i], prefix);
    return n;
}
