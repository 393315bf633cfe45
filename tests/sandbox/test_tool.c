/*
 * The box tool as its users see it: exit statuses, output, JSON, a terminal that is not theirs.
 */
#include "tests/sandbox/lab.h"

#include "base/json.h"

#include <string.h>
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
    ADD(json_is_one_object_with_everything);
    ADD(a_shell_has_a_terminal_of_the_boxs_own);
    ADD(degraded_is_refused_or_loud);
    ADD(the_probe_says_how_to_mend_what_is_not_ok);
    return lab_end(g_test_run());
}
