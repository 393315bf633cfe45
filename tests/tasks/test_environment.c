/*
 * Environment files: matching, placeholders, digests, mistakes.
 */
#include "base/fd.h"
#include "tasks/environment.h"

#include <string.h>

static const char conf_text[] = "[environment old]\nrepo = o/n\nversion = 1.*;2.0\npython = 3.9\n"
                                "packages = a==1; b[x] ;\nsetup.1 = echo {version}\n"
                                "setup.2 = true\nsetup.4 = never\nenv.V = v{version}\n"
                                "install.1 = make\n"
                                "[environment rest]\nrepo = o/*;p/q\n";

static Task *task_of(const char *repo, const char *version, char commit)
{
    g_autofree char *sha = g_strnfill(40, commit);
    g_autoptr(json_t) row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:[], s:[]}", "instance_id", "O__n-1", "repo",
                  repo, "version", version, "base_commit", sha, "test_patch", "", "eval_script",
                  "x", "FAIL_TO_PASS", "PASS_TO_PASS");
    g_autoptr(GError) error = NULL;
    Task *task = task_from_json(row, &error);
    g_assert_no_error(error);
    return task;
}

static char *conf_write(const char *text)
{
    char *path = NULL;
    int fd = g_file_open_tmp("assay-env-XXXXXX.conf", &path, NULL);
    g_assert_true(fd_write_all(fd, text, strlen(text), NULL));
    close(fd);
    return path;
}

static Environment *match(const char *conf, const char *repo, const char *version, char commit)
{
    g_autofree char *path = conf_write(conf);
    g_autoptr(Task) task = task_of(repo, version, commit);
    g_autoptr(GError) error = NULL;
    Environment *env = environment_for(task, path, &error);
    g_assert_no_error(error);
    unlink(path);
    return env;
}

static void the_first_matching_group_wins(void)
{
    g_autoptr(Environment) old = match(conf_text, "o/n", "1.5", 'a');
    g_assert_cmpstr(old->name, ==, "old");
    g_assert_cmpuint(g_strv_length(old->packages), ==, 2);
    g_assert_cmpstr(old->packages[1], ==, "b[x]");
    g_assert_cmpuint(g_strv_length(old->setup), ==, 2);
    g_assert_cmpstr(old->setup[0], ==, "echo 1.5");
    g_assert_cmpstr(old->envp[0], ==, "V=v1.5");
    g_autoptr(Environment) rest = match(conf_text, "o/n", "3.0", 'a');
    g_assert_cmpstr(rest->name, ==, "rest");
    g_autoptr(Environment) host = match(conf_text, "x/y", "3.0", 'a');
    g_assert_cmpstr(host->name, ==, "host");
}

static void the_digest_follows_what_changes_the_layer(void)
{
    g_autoptr(Environment) a = match(conf_text, "o/n", "1.5", 'a');
    g_autoptr(Environment) b = match(conf_text, "o/n", "1.5", 'b');
    g_autoptr(Environment) c = match(conf_text, "o/n", "2.0", 'a');
    g_assert_cmpstr(a->layer_digest, ==, b->layer_digest); /* one layer for both commits ... */
    g_assert_cmpstr(a->digest, !=, b->digest);             /* ... and one install for each */
    g_assert_cmpstr(a->layer_digest, !=, c->layer_digest); /* setup names the version */
    g_autoptr(Environment) d = match(conf_text, "p/q", "1", 'a');
    g_autoptr(Environment) e = match(conf_text, "p/q", "2", 'b');
    g_assert_cmpstr(d->digest, ==, e->digest); /* nothing to install: commits share it */
}

static void egress_is_a_list_and_part_of_the_layer(void)
{
    static const char head[] = "[environment a]\nrepo = o/n\nsetup.1 = true\n";
    g_autofree char *with = g_strconcat(head, "egress = pypi.org:443, *.b.org:80;c.org:1\n", NULL);
    g_autoptr(Environment) a = match(head, "o/n", "1", 'a');
    g_autoptr(Environment) b = match(with, "o/n", "1", 'a');
    g_assert_cmpuint(g_strv_length(a->egress), ==, 0);
    g_assert_cmpuint(g_strv_length(b->egress), ==, 3);
    g_assert_cmpstr(b->egress[1], ==, "*.b.org:80");
    g_assert_cmpstr(a->layer_digest, !=, b->layer_digest);
}

static void an_image_is_named_as_swe_bench_names_it(void)
{
    static const char conf[] = "[environment a]\nrepo = o/n\nversion = 1\n"
                               "image = swebench/sweb.eval.x86_64.{instance_id}:v{version}\n"
                               "[environment b]\nrepo = o/n\nimage = plain/{instance}\n";
    g_autoptr(Environment) a = match(conf, "o/n", "1", 'a');
    g_autoptr(Environment) b = match(conf, "o/n", "2", 'a');
    g_assert_cmpstr(a->image, ==, "swebench/sweb.eval.x86_64.o_1776_n-1:v1");
    g_assert_cmpstr(b->image, ==, "plain/O__n-1");
    g_assert_cmpstr(a->layer_digest, !=, b->layer_digest);
}

static void a_mistake_is_named(void)
{
    static const struct {
        const char *conf, *want;
    } cases[] = {
        {"[environment a]\nrepo = o/n\npakages = x\n", "did you mean packages?"},
        {"[environment a]\npython = 3.9\n", "key repo is missing"},
        {"[env a]\nrepo = o/n\n", "expected [environment NAME]"},
        {"[environment a]\nrepo = o/n\nsetup = x\n", "unknown key setup"},
        {"[environment a]\nrepo = o/n\nimage = x\nbase = /r\n", "image stands alone"},
        {"[environment a]\nrepo = o/n\nimage = x\npackages = p\n", "image stands alone"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *path = conf_write(cases[i].conf);
        g_autoptr(GError) error = NULL;
        g_assert_false(environment_conf_check(path, &error));
        g_assert_nonnull(strstr(error->message, cases[i].want));
        unlink(path);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/environment/the_first_matching_group_wins", the_first_matching_group_wins);
    g_test_add_func("/environment/the_digest_follows_what_changes_the_layer",
                    the_digest_follows_what_changes_the_layer);
    g_test_add_func("/environment/egress_is_a_list_and_part_of_the_layer",
                    egress_is_a_list_and_part_of_the_layer);
    g_test_add_func("/environment/an_image_is_named_as_swe_bench_names_it",
                    an_image_is_named_as_swe_bench_names_it);
    g_test_add_func("/environment/a_mistake_is_named", a_mistake_is_named);
    return g_test_run();
}
