/*
 * The box tool as its users see it: exit statuses, output, JSON, a terminal that is not theirs.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "base/json.h"
#include "base/tree.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

typedef struct Said {
    char *out, *err;
    int status;
} Said;

static void said_clear(Said *said)
{
    g_free(said->out);
    g_free(said->err);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Said, said_clear)

static Said tool(const char *line)
{
    Said said = {0};
    int status = 0;
    g_autofree char *whole = g_strdup_printf("exec %s %s", g_getenv("ASSAY_TEST_TOOL"), line);
    const char *const argv[] = {"/bin/sh", "-c", whole, NULL};
    g_autoptr(GError) error = NULL;
    g_assert_true(g_spawn_sync(NULL, (char **)(gsize)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL,
                               &said.out, &said.err, &status, &error));
    g_assert_true(WIFEXITED(status));
    said.status = WEXITSTATUS(status);
    return said;
}

static void exit_statuses_tell_how_it_ended(void)
{
    static const struct {
        const char *line;
        int status;
    } rows[] = {
        {"run -- true", 0},
        {"run -- sh -c 'exit 7'", 7},
        {"run -- sh -c 'kill -TERM $$'", 143},
        {"run --wall 200ms -- sleep 100", 124},
        {"run -- /nonexistent", 127},
        {"run -- /etc/passwd", 126},
        {"run --mem lots -- true", 125},
        {"run --nonsense -- true", 125},
        {"run --mem=64M -- /payload/none", 127},
        {"run --mount nothere:/x -- true", 125},
        {"run --require user,mount,pid,seccomp -- true", 0},
        {"run --require user,moon -- true", 125},
        {"run --net host --allow a.b:1 -- true", 125},
        {"run --uid 70000 -- true", 125},
        {"run --cpus 0.001 -- true", 125},
        {"run --output-kill 1K -- yes", 124},
        {"run --idle 200ms -- sleep 100", 124},
        {"run", 125},
        {"", 125},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_auto(Said) said = tool(rows[i].line);
        if (said.status != rows[i].status)
            g_test_fail_printf("%s: %d instead of %d (%s)", rows[i].line, said.status,
                               rows[i].status, said.err);
    }
}

static void the_commands_streams_are_its_own(void)
{
    g_auto(Said) said = tool("run --uid 0 -- sh -c 'echo out; echo err >&2; id -u'");
    g_assert_cmpstr(said.out, ==, "out\n0\n");
    g_assert_cmpstr(said.err, ==, "err\n");
}

static void a_wrong_option_names_the_nearest(void)
{
    static const struct {
        const char *line, *want;
    } rows[] = {{"run --memm 1G -- true", "did you mean --mem?"},
                {"run --read-only-rot -- true", "did you mean --read-only-root?"},
                {"run --require lanlock -- true", "did you mean landlock?"},
                {"run --cpus many -- true", "--cpus: many is no N"},
                {"run --json=yes -- true", "--json takes no value"},
                {"run -m 1G -- true", "all are long"},
                {"run --mem", "--mem needs a value"},
                {"run --mount /a -- true", "is not SRC:/DST"},
                {"run --env X -- true", "is not NAME=VALUE"}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_auto(Said) said = tool(rows[i].line);
        g_assert_cmpint(said.status, ==, 125);
        if (strstr(said.err, rows[i].want) == NULL)
            g_test_fail_printf("%s: %s", rows[i].line, said.err);
    }
}

static void every_part_of_a_spec_has_an_option(void)
{
    g_autofree char *dir = g_dir_make_tmp("assay-tool-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "f", NULL);
    g_assert_true(g_file_set_contents(path, "text", 4, NULL));
    g_assert_cmpint(chmod(dir, 0755), ==, 0);
    g_assert_cmpint(chmod(path, 0644), ==, 0);
    const struct {
        const char *options, *line, *want;
    } rows[] = {
        {"--env A=1 --env B=x=y", "echo $A $B", "1 x=y\n"},
        {"--cwd /tmp", "pwd", "/tmp\n"},
        {"--hostname here", "cat /proc/sys/kernel/hostname", "here\n"},
        {"--uid 7 --gid 8", "id -u; id -g", "7\n8\n"},
        {"--work-path /some/where", "pwd", "/some/where\n"},
        {"--mount %s:/m", "cat /m/f", "text"},
        {"--work %s", "cat f; echo more > f; cat f", "textmore\n"},
        {"--layer %s", "cat /f", "text"},
        {"--file %s/f:/work/deep/g", "cat deep/g; stat -c %a deep/g", "text644\n"},
        {"--read-only-root --uid 0", "touch /usr/x 2>/dev/null || echo refused", "refused\n"},
        {"--nofile 77", "ulimit -n", "77\n"},
        {"--stdin", "cat", "typed"},
        {"", "cat", ""},
        {"--merge", "echo a >&2; echo b", "a\nb\n"},
        {"--allow a.b:443", "echo $https_proxy", BOX_PROXY_URL "\n"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GString) options = g_string_new(rows[i].options);
        g_string_replace(options, "%s", dir, 0);
        g_autofree char *line =
            g_strdup_printf("run %s -- sh -c '%s' < %s", options->str, rows[i].line, "$T");
        g_autofree char *input = g_build_filename(dir, "typed", NULL);
        g_assert_true(g_file_set_contents(input, "typed", 5, NULL));
        g_setenv("T", input, TRUE);
        g_auto(Said) said = tool(line);
        if (g_strcmp0(said.out, rows[i].want) != 0)
            g_test_fail_printf("%s: %s (%s)", line, said.out, said.err);
    }
    tree_remove(AT_FDCWD, dir, NULL);
}

static void what_is_written_can_be_kept(void)
{
    g_autofree char *dir = g_dir_make_tmp("assay-tool-XXXXXX", NULL);
    g_assert_cmpint(chmod(dir, 0755), ==, 0);
    g_autofree char *line = g_strdup_printf("run --keep-upper %s/u -- sh -c 'echo kept > x'", dir);
    g_autofree char *path = g_build_filename(dir, "u", "upper", "x", NULL);
    g_autofree char *text = NULL;
    g_auto(Said) said = tool(line);
    g_assert_cmpstr(said.err, ==, "");
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpstr(text, ==, "kept\n");
    tree_remove(AT_FDCWD, dir, NULL);
}

/* Starts it; what it says is read from *RET_OUT. */
static GPid tool_start(const char *const *options, int *ret_out)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    GPid pid;
    g_ptr_array_add(argv, (gpointer)(gsize)g_getenv("ASSAY_TEST_TOOL"));
    for (; *options != NULL; options++)
        g_ptr_array_add(argv, (gpointer)(gsize)*options);
    g_ptr_array_add(argv, NULL);
    g_assert_true(g_spawn_async_with_pipes(NULL, (char **)argv->pdata, NULL,
                                           G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, NULL,
                                           ret_out, NULL, NULL));
    return pid;
}

static void output_is_live_and_an_interrupt_cancels(void)
{
    static const char *const options[] = {"run", "--", "sh", "-c", "echo first; sleep 1000", NULL};
    AUTO_FD out = -1;
    int status = 0;
    char line[16] = {0};
    GPid pid = tool_start(options, &out);
    g_assert_cmpint(read(out, line, sizeof line - 1), ==, 6); /* while the command runs */
    g_assert_cmpstr(line, ==, "first\n");
    g_assert_cmpint(kill(pid, SIGINT), ==, 0);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 130);
}

/* Processes called NAME whose parent is PARENT. */
static GArray *children_named(const char *name, int parent)
{
    GArray *pids = g_array_new(FALSE, FALSE, sizeof(int));
    g_autofree char *first = g_strdup_printf("Name:\t%s\n", name);
    g_autofree char *line = g_strdup_printf("\nPPid:\t%d\n", parent);
    g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
    for (const char *pid; (pid = g_dir_read_name(dir)) != NULL;) {
        g_autofree char *path = g_build_filename("/proc", pid, "status", NULL);
        g_autofree char *text = NULL;
        int number = (int)g_ascii_strtoll(pid, NULL, 10);
        if (number > 0 && g_file_get_contents(path, &text, NULL, NULL) &&
            g_str_has_prefix(text, first) && strstr(text, line) != NULL)
            g_array_append_val(pids, number);
    }
    return pids;
}

static void a_killed_tool_leaves_no_proxy(void)
{
    static const char *const options[] = {
        "run", "--allow", "a.b:443", "--", "sh", "-c", "echo up; sleep 1000", NULL};
    AUTO_FD out = -1;
    char line[16] = {0};
    GPid pid = tool_start(options, &out);
    g_assert_cmpint(read(out, line, sizeof line - 1), ==, 3);
    g_autoptr(GArray) proxies = children_named("assay-egress", pid);
    g_assert_cmpuint(proxies->len, ==, 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    g_assert_true(lab_wait_gone(proxies, 5000));
    box_sweep_stale(); /* its groups; the next start would do it */
}

static void the_man_page_and_the_help_name_every_option(void)
{
    g_auto(Said) help = tool("run --help");
    g_auto(Said) man = tool("help --man");
    g_auto(GStrv) lines = g_strsplit(help.out, "\n", -1);
    guint n = 0;
    for (char **line = lines; *line != NULL; line++) {
        if (!g_str_has_prefix(*line, "  --"))
            continue;
        g_auto(GStrv) words = g_strsplit(*line + 4, " ", 2);
        g_autofree char *entry = g_strdup_printf(".B \\-\\-%s ", words[0]);
        g_assert_nonnull(strstr(man.out, entry));
        n++;
    }
    g_assert_cmpuint(n, >=, 35);
}

static void cpu_time_is_counted_without_version_2(void)
{
    static const char line[] = "for m in $(grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' "
                               "-f5); do umount -l $m; done;"
                               " exec $TOOL run --json --cpu 400ms -- sh -c 'while :; do :; done'";
    if (lab_is_user() || access("/sys/fs/cgroup/cpuacct/cgroup.procs", W_OK) < 0) {
        g_test_skip("needs root and a version 1 hierarchy of cpuacct");
        return;
    }
    g_setenv("TOOL", g_getenv("ASSAY_TEST_TOOL"), TRUE);
    const char *const argv[] = {"unshare", "-m", "/bin/sh", "-c", line, NULL};
    g_autofree char *out = NULL;
    g_assert_true(g_spawn_sync(NULL, (char **)(gsize)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                               &out, NULL, NULL, NULL));
    g_autoptr(json_t) root = json_parse(out, strlen(out), NULL);
    g_assert_cmpstr(json_want_str(root, "outcome", NULL), ==, "cpu_limit");
    g_assert_cmpstr(json_want_str(root, "cpu_by", NULL), ==, "cgroup1");
    json_int_t used = json_integer_value(json_object_get(root, "cpu_user_us")) +
                      json_integer_value(json_object_get(root, "cpu_sys_us"));
    g_assert_cmpint(used, >=, 350000);
    g_assert_cmpint(used, <, 2000000);
}

static void json_is_one_object_with_everything(void)
{
    g_auto(Said) said = tool("run --json --wall 5s -- sh -c 'printf \"a\\377b\"; exit 3'");
    g_autoptr(json_t) root = json_parse(said.out, strlen(said.out), NULL);
    g_assert_nonnull(root);
    g_assert_cmpint(said.status, ==, 3);
    g_assert_cmpstr(json_want_str(root, "outcome", NULL), ==, "exited");
    g_assert_cmpstr(json_want_str(root, "stdout", NULL), ==,
                    "a\xef\xbf\xbd"
                    "b");
    json_t *box = json_object_get(root, "box");
    g_assert_cmpstr(json_want_str(box, "mode", NULL), ==, "namespaces");
    g_assert_cmpuint(json_array_size(json_object_get(box, "layers")), >=, 12);
}

static void a_shell_has_a_terminal_of_the_boxs_own(void)
{
    if (lab_is_user()) {
        g_test_skip("a single-id box has terminals only as uid 0; covered as root");
        return;
    }
    g_auto(Said) said = tool("shell --uid 0 -- sh -c 'tty; stat -c %F /dev/tty; "
                             "cat < /dev/tty > /dev/null & exit 5' < /dev/null");
    g_assert_cmpint(said.status, ==, 5);
    g_assert_nonnull(strstr(said.out, "/dev/pts/0"));
}

static void degraded_is_refused_or_loud(void)
{
    g_setenv("ASSAY_BOX_FORCE", "landlock", TRUE);
    g_auto(Said) refused = tool("run -- true");
    g_auto(Said) loud = tool("run --allow-degraded -- true");
    g_unsetenv("ASSAY_BOX_FORCE");
    g_assert_cmpint(refused.status, ==, 125);
    if (loud.status == 125 && strstr(loud.err, "Landlock") != NULL)
        g_test_skip("no Landlock here");
    else
        g_assert_nonnull(strstr(loud.err, "DEGRADED"));
}

static void the_probe_says_how_to_mend_what_is_not_ok(void)
{
    g_auto(Said) said = tool("probe");
    g_autoptr(json_t) root = json_parse(said.out, strlen(said.out), NULL);
    g_assert_nonnull(root);
    size_t i;
    json_t *check;
    g_assert_cmpuint(json_array_size(json_object_get(root, "checks")), >=, 8);
    json_array_foreach(json_object_get(root, "checks"), i, check)
    {
        const char *status = json_want_str(check, "status", NULL);
        if (!g_str_equal(status, "ok"))
            g_assert_cmpuint(json_array_size(json_object_get(check, "fix")), >=, 1);
        if (g_str_equal(json_want_str(check, "id", NULL), "box"))
            g_assert_cmpstr(status, ==, "ok");
    }
}

#define ADD(fn) g_test_add_func("/tool/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(exit_statuses_tell_how_it_ended);
    ADD(the_commands_streams_are_its_own);
    ADD(a_wrong_option_names_the_nearest);
    ADD(every_part_of_a_spec_has_an_option);
    ADD(what_is_written_can_be_kept);
    ADD(output_is_live_and_an_interrupt_cancels);
    ADD(a_killed_tool_leaves_no_proxy);
    ADD(the_man_page_and_the_help_name_every_option);
    ADD(cpu_time_is_counted_without_version_2);
    ADD(json_is_one_object_with_everything);
    ADD(a_shell_has_a_terminal_of_the_boxs_own);
    ADD(degraded_is_refused_or_loud);
    ADD(the_probe_says_how_to_mend_what_is_not_ok);
    return lab_end(g_test_run());
}
