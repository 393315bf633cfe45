/*
 * The doctor on machines that lack something: each lack is simulated, and the right check must
 * name the right remedy.
 *
 * A system call is taken away by a filter in the probing process; a covered /proc and spent
 * namespace counts come from namespaces made by unshare(1).
 */
#include "tests/sandbox/lab.h"

#include "base/json.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FSOPEN 430

/* What child_setup forbids; 0: nothing. */
static guint refused_nr, refused_errno;

static void refuse(gpointer data)
{
    (void)data;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused_nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | refused_errno),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {G_N_ELEMENTS(rules), rules};
    if (refused_nr == 0)
        return;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        _exit(99);
}

/* Runs the tool's probe after the shell line BEFORE; NULL when that failed. */
static json_t *probe(const char *prefix, const char *before)
{
    g_autofree char *line =
        g_strdup_printf("%s exec '%s' probe", before, g_getenv("ASSAY_TEST_TOOL"));
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    g_auto(GStrv) words = g_strsplit(prefix, " ", -1);
    for (char **word = words; *word != NULL; word++)
        if (**word != '\0')
            g_ptr_array_add(argv, g_strdup(*word));
    g_ptr_array_add(argv, g_strdup("/bin/sh"));
    g_ptr_array_add(argv, g_strdup("-ec"));
    g_ptr_array_add(argv, g_strdup(line));
    g_ptr_array_add(argv, NULL);
    g_autofree char *out = NULL;
    int status = 0;
    if (!g_spawn_sync(NULL, (char **)argv->pdata, NULL, G_SPAWN_SEARCH_PATH, refuse, NULL, &out,
                      NULL, &status, NULL) ||
        status != 0)
        return NULL;
    return json_parse(out, strlen(out), NULL);
}

static const json_t *check_of(const json_t *report, const char *id)
{
    size_t i;
    json_t *check;
    json_array_foreach(json_object_get(report, "checks"), i, check)
    {
        if (g_str_equal(json_want_str(check, "id", NULL), id))
            return check;
    }
    g_error("there is no check %s", id);
}

static gboolean fixes_say(const json_t *check, const char *want)
{
    size_t i;
    json_t *fix;
    json_array_foreach(json_object_get(check, "fix"), i, fix)
    {
        if (strstr(json_string_value(fix), want) != NULL)
            return TRUE;
    }
    return FALSE;
}

/* The check is not ok, says WHY, and names the remedy. */
static void expect(const json_t *report, const char *id, const char *why, const char *fix)
{
    const json_t *check = check_of(report, id);
    g_autofree char *text = json_print(check);
    if (g_str_equal(json_want_str(check, "status", NULL), "ok") || !fixes_say(check, fix) ||
        strstr(json_want_str(check, "detail", NULL), why) == NULL)
        g_test_fail_printf("%s: wanted %s and %s, got %s", id, why, fix, text);
}

static void expect_ok(const json_t *report, const char *id)
{
    const json_t *check = check_of(report, id);
    g_autofree char *text = json_print(check);
    if (!g_str_equal(json_want_str(check, "status", NULL), "ok"))
        g_test_fail_printf("%s: %s", id, text);
}

static void what_is_not_ok_has_a_remedy_and_ids_are_distinct(void)
{
    g_autoptr(json_t) report = probe("", "");
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
    size_t i;
    json_t *check;
    g_assert_nonnull(report);
    json_array_foreach(json_object_get(report, "checks"), i, check)
    {
        const char *id = json_want_str(check, "id", NULL);
        g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)id));
        g_assert_cmpstr(json_want_str(check, "detail", NULL), !=, "");
        if (!g_str_equal(json_want_str(check, "status", NULL), "ok"))
            g_assert_cmpuint(json_array_size(json_object_get(check, "fix")), >=, 1);
    }
    g_assert_cmpuint(g_hash_table_size(seen), >=, 30);
    expect_ok(report, "box");
    expect_ok(report, "ns_user");
}

static void a_refused_call_is_named_with_its_remedy(void)
{
    static const struct {
        guint nr, err;
        const char *id, *why, *fix;
    } rows[] = {
        {435, ENOSYS, "ns_user", "Function not implemented", "seccomp=unconfined"},
        {435, EPERM, "ns_user", "Operation not permitted", "seccomp=unconfined"},
        {435, ENOSYS, "ns_net", "needs a user namespace", "mend ns_user"},
        {435, ENOSYS, "overlay", "needs namespaces", "mend the namespaces"},
        {435, ENOSYS, "clone_into", "", "5.7 or newer"},
        {437, ENOSYS, "openat2", "Function not implemented", "Linux 5.6"},
        {434, EPERM, "pidfd", "Operation not permitted", "seccomp=unconfined"},
        {436, ENOSYS, "close_range", "Function not implemented", "Linux 5.11"},
        {428, ENOSYS, "mount_api", "Function not implemented", "Linux 5.2"},
        {444, ENOSYS, "landlock", "absent or not enabled", "lsm=landlock"},
        {444, EOPNOTSUPP, "landlock", "not supported", "lsm=landlock"},
        {SYS_mount, ENODEV, "overlay", "No such device", "modprobe overlay"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        refused_nr = rows[i].nr;
        refused_errno = rows[i].err;
        g_autoptr(json_t) report = probe("", "");
        g_assert_nonnull(report);
        expect(report, rows[i].id, rows[i].why, rows[i].fix);
    }
    refused_nr = 0;
}

static void what_keeps_images_from_being_one_file_is_named(void)
{
    static const struct {
        guint nr, err;
        const char *why;
    } rows[] = {
        {FSOPEN, ENODEV, "this kernel has no erofs"},
        {FSOPEN, EPERM, "it cannot be mounted"},
        {431, ENOTBLK, "from block devices only"},
        {428, EINVAL, "cannot clone detached mounts"},
    };
    g_autoptr(json_t) plain = probe("", "");
    const char *says = json_want_str(check_of(plain, "erofs"), "detail", NULL);
    gboolean mounts = !lab_is_user() && strstr(says, "this kernel") == NULL;
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (rows[i].nr != FSOPEN && !mounts)
            continue; /* it does not get that far */
        refused_nr = rows[i].nr;
        refused_errno = rows[i].err;
        g_autoptr(json_t) report = probe("", "");
        g_assert_nonnull(report);
        expect(report, "erofs", lab_is_user() ? "only root can mount it" : rows[i].why,
               "erofs-utils, on Linux 6.15");
    }
    refused_nr = 0;
}

static void a_covered_proc_is_named(void)
{
    g_autoptr(json_t) report =
        probe("unshare -r -m", "mount -t tmpfs none /proc/sys && test ! -e /proc/sys/kernel;");
    if (report == NULL) {
        g_test_skip("unshare(1) cannot make namespaces here");
        return;
    }
    expect(report, "proc", "Operation not permitted", "systempaths=unconfined");
    expect(report, "box", "", "mend what fails");
}

static void spent_namespace_counts_are_named(void)
{
    static const char *const words[] = {"user", "net", "pid", "ipc", "uts", "mnt"};
    for (gsize i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree char *before =
            g_strdup_printf("echo 0 > /proc/sys/user/max_%s_namespaces;", words[i]);
        g_autofree char *id = g_strdup_printf("ns_%s", words[i]);
        g_autofree char *fix = g_strdup_printf("sysctl -w user.max_%s_namespaces", words[i]);
        g_autoptr(json_t) report = probe("unshare -r", before);
        if (report == NULL) {
            g_test_skip("unshare(1) cannot make namespaces here");
            return;
        }
        expect(report, id, "No space left", fix);
    }
}

static void without_groups_the_delegation_is_named(void)
{
    g_autoptr(json_t) report = probe("unshare -r -m", "mount -t tmpfs none /sys/fs/cgroup;");
    if (report == NULL) {
        g_test_skip("unshare(1) cannot make namespaces here");
        return;
    }
    expect(report, "cgroup_layout", "no hierarchy", "mount -t cgroup2");
    expect(report, "cgroup_memory", "sampled", "Delegate=memory pids cpu");
    expect(report, "cgroup_pids", "RLIMIT_NPROC", "systemd-run --user --scope -p Delegate=yes");
    expect(report, "cgroup_kill", "no version 2 leaf", "5.14");
    expect_ok(report, "box");
    expect(report, "layers", "missing: cgroup", "assay box run --json");
}

#define ADD(fn) g_test_add_func("/doctor/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(what_is_not_ok_has_a_remedy_and_ids_are_distinct);
    ADD(a_refused_call_is_named_with_its_remedy);
    ADD(what_keeps_images_from_being_one_file_is_named);
    ADD(a_covered_proc_is_named);
    ADD(spent_namespace_counts_are_named);
    ADD(without_groups_the_delegation_is_named);
    return lab_end(g_test_run());
}
