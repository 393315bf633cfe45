/*
 * Building environments: what a recipe's commands can reach.
 */
#include "env/env_build.h"

#include "base/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static char *state_dir;

static gboolean boxes_work(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = {.limits = box_limits_default()};
    g_autoptr(Box) box = box_open(&spec, &error);
    if (box == NULL)
        printf("1..0 # SKIP no boxes on this host: %s\n", error->message);
    return box != NULL;
}

static const char recipe[] =
    "[environment e]\nrepo = o/n\negress = only.test:443\n"
    "setup.1 = test \"$https_proxy\" = http://127.0.0.1:3128\n"
    "setup.2 = exec 3<>/dev/tcp/127.0.0.1/3128; "
    "printf 'CONNECT other.test:443 HTTP/1.1\\r\\n\\r\\n' >&3; grep -q 'egress: not_allowed' <&3\n"
    "setup.3 = ! (exec 4<>/dev/tcp/192.0.2.1/80) 2>/dev/null\n"
    "setup.4 = test -d /etc/ssl/certs || test ! -d /usr/share/ca-certificates\n";

static Environment *environment_make(void)
{
    g_autofree char *path = g_build_filename(state_dir, "recipe.conf", NULL);
    g_autoptr(json_t) row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:[], s:[]}", "instance_id", "i", "repo", "o/n",
                  "version", "1", "base_commit", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                  "test_patch", "", "eval_script", "x", "FAIL_TO_PASS", "PASS_TO_PASS");
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_set_contents(path, recipe, -1, NULL));
    g_autoptr(Task) task = task_from_json(row, &error);
    g_assert_no_error(error);
    Environment *env = environment_for(task, path, &error);
    g_assert_no_error(error);
    return env;
}

static void with_egress_commands_have_the_proxy_and_nothing_else(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Environment) env = environment_make();
    g_autofree char *checkout = g_build_filename(state_dir, "checkout", NULL);
    g_autofree char *tree = g_build_filename(checkout, "tree", NULL);
    g_assert_cmpint(g_mkdir_with_parents(tree, 0755), ==, 0);
    const EnvHost host = {.state_dir = state_dir, .slot = 7};
    g_autoptr(EnvLayers) layers = env_ensure(&host, env, checkout, &error);
    g_assert_no_error(error);
    g_autofree char *path = g_build_filename(state_dir, "envs", env->layer_digest, "log", NULL);
    g_autofree char *log = NULL;
    g_assert_true(g_file_get_contents(path, &log, NULL, NULL));
    g_assert_nonnull(strstr(log, "\"verdict\":\"not_allowed\""));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!boxes_work())
        return 0;
    state_dir = g_dir_make_tmp("assay-env-XXXXXX", NULL);
    g_assert_nonnull(state_dir);
    g_assert_cmpint(chmod(state_dir, 0711), ==, 0);
    g_test_add_func("/env_build/with_egress_commands_have_the_proxy_and_nothing_else",
                    with_egress_commands_have_the_proxy_and_nothing_else);
    int status = g_test_run();
    box_shutdown();
    tree_remove(AT_FDCWD, state_dir, NULL);
    return status;
}
