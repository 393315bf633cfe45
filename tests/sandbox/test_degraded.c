/*
 * Boxes without namespaces (forced): refused unless asked for, loud when used, and as closed as
 * Landlock, the filter and rlimits can make them.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "base/json.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static BoxSpec degraded_spec(void)
{
    BoxSpec spec = lab_spec(0);
    spec.n_mounts = 0;
    spec.allow_degraded = TRUE;
    return spec;
}

static void it_is_refused_unless_asked_for(void)
{
    BoxSpec spec = degraded_spec();
    spec.allow_degraded = FALSE;
    g_autoptr(GError) error = NULL;
    g_assert_null(box_open(&spec, &error));
    g_assert_nonnull(error);
}

static void it_says_what_is_lost(void)
{
    BoxSpec spec = degraded_spec();
    g_autoptr(Box) box = lab_open(&spec);
    g_assert_cmpuint(box_enforced(box) & (BOX_LAYER_USER | BOX_LAYER_MOUNT | BOX_LAYER_NET), ==, 0);
    g_assert_cmpuint(box_enforced(box) & BOX_LAYER_SECCOMP, !=, 0);
    g_assert_cmpuint(box_enforced(box) & BOX_LAYER_LANDLOCK, !=, 0);
    g_autofree char *text = box_report_json(box);
    g_autoptr(json_t) report = json_parse(text, strlen(text), NULL);
    g_assert_cmpstr(json_want_str(report, "mode", NULL), ==, "landlock");
    g_assert_cmpuint(json_array_size(json_object_get(report, "missing")), >=, 8);
}

static void a_required_layer_refuses_it(void)
{
    BoxSpec spec = degraded_spec();
    spec.require = BOX_LAYER_PID;
    g_autoptr(GError) error = NULL;
    g_assert_null(box_open(&spec, &error));
    g_assert_nonnull(strstr(error->message, "pid"));
}

static void only_the_copy_can_be_written_and_little_read(void)
{
    static const char *const shut[] = {"/root", "/home", "/var/log", "/tmp",
                                       "/boot", "/sys",  "/run"};
    BoxSpec spec = degraded_spec();
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *text =
        lab_sh(box, "id -u; echo x > here; cat here; echo x > $TMPDIR/y; cat $TMPDIR/y", &result);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), ==, 3);
    g_assert_cmpstr(lines[0], !=, "0"); /* the host's root never enters */
    g_assert_cmpstr(lines[2], ==, "x");
    for (gsize i = 0; i < G_N_ELEMENTS(shut); i++) {
        g_auto(BoxResult) one = {0};
        g_autofree char *line = g_strdup_printf(
            "p=%s; ls $p/ 2>/dev/null | wc -l; touch $p/x 2>/dev/null && echo written", shut[i]);
        g_autofree char *seen = lab_sh(box, line, &one);
        if (!g_str_equal(seen, "0"))
            g_test_fail_printf("%s: %s", shut[i], seen);
    }
}

static void there_is_no_network_at_all(void)
{
    BoxSpec spec = degraded_spec();
    BoxFile file = {"/tmp/payload", NULL, 0, 0755};
    g_autofree char *data = NULL;
    gsize len = 0;
    g_assert_true(g_file_get_contents(g_getenv("ASSAY_TEST_PAYLOAD"), &data, &len, NULL));
    file.data = data;
    file.len = len;
    g_autoptr(Box) box = lab_open(&spec);
    static const char *const words[] = {"loopback4", "connect_world", "udp_world", "netlink_audit"};
    for (gsize i = 0; i < G_N_ELEMENTS(words); i++) {
        BoxCommand command = {.argv = (const char *const[]){"/tmp/payload", words[i], NULL},
                              .files = &file,
                              .n_files = 1};
        g_auto(BoxResult) result = {0};
        g_assert_true(box_exec(box, &command, &result, NULL));
        g_assert_cmpint(result.outcome, ==, BOX_EXITED);
        gsize n = 0;
        const char *out = g_bytes_get_data(result.out, &n);
        if (n < 4 || out[0] != 'E')
            g_test_fail_printf("%s: %.*s", words[i], (int)n, out);
    }
}

static void other_processes_are_out_of_reach(void)
{
    BoxSpec spec = degraded_spec();
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *line = g_strdup_printf(
        "kill -0 %d 2>/dev/null && echo reached; cat /proc/%d/environ 2>/dev/null | grep -c canary",
        (int)getpid(), (int)getpid());
    g_autofree char *text = lab_sh(box, line, &result);
    g_assert_cmpstr(text, ==, "0");
}

static void daemons_are_dead_when_the_command_returns(void)
{
    /* a number of our own: ps sees all of the machine's processes here */
    g_autofree char *nap = g_strdup_printf("sleep %d", 1000000 + (int)getpid());
    g_autofree char *finds = g_strdup_printf("ps -A -o args= | grep -c '^%s'", nap);
    g_autofree char *ends = g_strdup_printf("(setsid %s &); %s & echo x", nap, nap);
    g_autofree char *stays = g_strdup_printf("(setsid %s &); %s", nap, nap);
    BoxSpec spec = degraded_spec();
    spec.limits.wall_ms = 500;
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) one = {0}, two = {0};
    g_autofree char *first = lab_sh(box, ends, &one);
    g_assert_cmpint(one.outcome, ==, BOX_EXITED);
    g_assert_cmpuint(one.leftover_procs, ==, 2);
    g_autofree char *second = lab_sh(box, stays, &two);
    g_assert_cmpint(two.outcome, ==, BOX_TIMED_OUT);
    g_auto(BoxResult) three = {0};
    g_autofree char *left = lab_sh(box, finds, &three);
    g_assert_cmpstr(left, ==, "0");
}

/* Layers above a lower one: changed, deleted and replaced entries come out merged. */
static void the_copy_is_the_merged_workspace(void)
{
    g_autofree char *top = g_dir_make_tmp("assay-merge-XXXXXX", NULL);
    g_autofree char *line = g_strdup_printf(
        "cd %s && mkdir -p lower/d upper/d && echo a > lower/a && echo b > lower/d/b && "
        "ln -s a lower/l && echo A > upper/a && echo c > upper/d/c && chmod 755 lower/d/b",
        top);
    const char *const argv[] = {"/bin/sh", "-c", line, NULL};
    g_assert_true(g_spawn_sync(NULL, (char **)(gsize)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, NULL,
                               NULL, NULL, NULL));
    g_autofree char *lower = g_build_filename(top, "lower", NULL);
    g_autofree char *upper = g_build_filename(top, "upper", NULL);
    const int fds[] = {open(upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                       open(lower, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    BoxSpec spec = degraded_spec();
    spec.work_fds = fds;
    spec.n_work = 2;
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *text =
        lab_sh(box, "cat a l d/b d/c; test -x d/b && echo x; echo changed > a", &result);
    g_assert_cmpstr(text, ==, "A\nA\nb\nc\nx");
    g_autofree char *path = g_build_filename(upper, "a", NULL);
    g_autofree char *after = NULL;
    g_assert_true(g_file_get_contents(path, &after, NULL, NULL));
    g_assert_cmpstr(after, ==, "A\n");
    g_autofree char *inside = box_path_inside(box, "/testbed/d/b");
    g_assert_true(g_str_has_suffix(inside, "/work/d/b"));
    g_assert_true(g_file_test(inside, G_FILE_TEST_EXISTS));
    g_clear_pointer(&box, box_close);
    g_assert_false(g_file_test(inside, G_FILE_TEST_EXISTS));
    close(fds[0]);
    close(fds[1]);
}

static void what_it_cannot_show_is_refused(void)
{
    BoxSpec spec = lab_spec(0); /* has a mount */
    spec.allow_degraded = TRUE;
    g_autoptr(GError) error = NULL;
    g_assert_null(box_open(&spec, &error));
    g_assert_nonnull(strstr(error->message, "mounts"));
}

#define ADD(fn) g_test_add_func("/degraded/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    g_setenv("ASSAY_BOX_FORCE", "landlock", TRUE);
    BoxSpec spec = degraded_spec();
    g_autoptr(GError) error = NULL;
    Box *box = box_open(&spec, &error);
    if (box == NULL) {
        g_print("1..0 # SKIP no Landlock: %s\n", error->message);
        return lab_end(0);
    }
    box_close(box);
    ADD(it_is_refused_unless_asked_for);
    ADD(it_says_what_is_lost);
    ADD(a_required_layer_refuses_it);
    ADD(only_the_copy_can_be_written_and_little_read);
    ADD(there_is_no_network_at_all);
    ADD(other_processes_are_out_of_reach);
    ADD(daemons_are_dead_when_the_command_returns);
    ADD(the_copy_is_the_merged_workspace);
    ADD(what_it_cannot_show_is_refused);
    return lab_end(g_test_run());
}
