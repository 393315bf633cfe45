/*
 * Caches and prepared checkouts, against repositories made here with git itself.
 */
#include "base/fd.h"
#include "base/tree.h"
#include "tasks/repo.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Fixture {
    char *dir, *state, *source, *commit;
} Fixture;

static char *shell(const char *dir, const char *script)
{
    const char *argv[] = {"/bin/sh", "-ec", script, NULL};
    g_autoptr(GError) error = NULL;
    char *out = NULL, *err = NULL;
    int status = -1;
    g_spawn_sync(dir, (char **)(gsize)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &out, &err, &status,
                 &error);
    g_assert_no_error(error);
    if (status != 0)
        g_error("%s: %s", script, err);
    g_free(err);
    return g_strchomp(out);
}

static void set_up(Fixture *f, gconstpointer data)
{
    (void)data;
    g_autofree char *git = g_find_program_in_path("git");
    if (git == NULL) {
        g_test_skip("git is not installed");
        return;
    }
    f->dir = g_dir_make_tmp("assay-repo-XXXXXX", NULL);
    f->state = g_build_filename(f->dir, "state", NULL);
    f->source = g_build_filename(f->dir, "source", NULL);
    g_assert_cmpint(mkdir(f->state, 0700), ==, 0);
    g_assert_cmpint(mkdir(f->source, 0700), ==, 0);
    f->commit = shell(
        f->source,
        "git init -q -b main . ; git config user.email a@b; git config "
        "user.name a; mkdir -p pkg/deep; echo one > pkg/deep/a.txt; "
        "printf 'x\\n' > run.sh; chmod +x run.sh; ln -s run.sh link; printf 'a\\000b' > bin.dat; "
        "git add -A; git commit -qm first; git rev-parse HEAD");
    g_free(shell(f->source, "echo future > secret.txt; git add -A; git commit -qm future; "
                            "git tag v2"));
}

static void tear_down(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    AUTO_FD tmp = open(g_get_tmp_dir(), O_RDONLY | O_DIRECTORY);
    g_autofree char *name = g_path_get_basename(f->dir);
    tree_remove(tmp, name, NULL);
    g_free(f->dir);
    g_free(f->state);
    g_free(f->source);
    g_free(f->commit);
}

static Task *task_of(const Fixture *f, const char *files)
{
    g_autofree char *text = g_strdup_printf(
        "{\"instance_id\":\"o__n-1\",\"repo\":\"o/n\",\"repo_url\":\"%s\",\"base_commit\":\"%s\","
        "\"test_patch\":\"\",\"eval_script\":\"x\",\"FAIL_TO_PASS\":[],\"PASS_TO_PASS\":\"[]\"%s}",
        f->source, f->commit, files);
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) row = json_parse(text, strlen(text), &error);
    g_assert_no_error(error);
    Task *task = task_from_json(row, &error);
    g_assert_no_error(error);
    return task;
}

static char *checkout(const Fixture *f, const Task *task)
{
    g_autoptr(GError) error = NULL;
    const RepoOwner owner = {geteuid(), getegid()};
    char *dir = repo_checkout(f->state, task, NULL, &owner, &error);
    g_assert_no_error(error);
    return dir;
}

static void a_checkout_is_clean_and_knows_only_the_base(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_autoptr(Task) task = task_of(f, "");
    g_autofree char *dir = checkout(f, task);
    g_autofree char *tree = g_build_filename(dir, "tree", NULL);

    g_autofree char *status = shell(tree, "git status --porcelain --ignored");
    g_assert_cmpstr(status, ==, "");
    g_autofree char *log = shell(tree, "git log --all --format=%s");
    g_assert_cmpstr(log, ==, "base");
    g_autofree char *content = shell(tree, "cat pkg/deep/a.txt; readlink link; test -x run.sh; "
                                           "wc -c < bin.dat");
    g_assert_cmpstr(content, ==, "one\nrun.sh\n3");
    g_autofree char *leak = shell(tree, "git rev-list --all --objects | grep -c secret || true");
    g_assert_cmpstr(leak, ==, "0");
    g_autofree char *fsck = shell(tree, "git fsck --full --strict 2>&1 | grep -v '^notice' || :");
    g_assert_cmpstr(fsck, ==, "");
}

static void the_datasets_commit_id_resolves(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_autoptr(Task) task = task_of(f, "");
    g_autofree char *dir = checkout(f, task);
    g_autofree char *tree = g_build_filename(dir, "tree", NULL);
    g_autofree char *script = g_strdup_printf(
        "echo two > pkg/deep/a.txt; git checkout -q %s pkg/deep/a.txt; cat pkg/deep/a.txt; "
        "git -c core.fileMode=false diff %s",
        f->commit, f->commit);
    g_autofree char *out = shell(tree, script);
    g_assert_cmpstr(out, ==, "one");
}

static void a_missing_blob_is_left_out_and_listed(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_free(shell(f->source, "rm -f .git/objects/$(git rev-parse HEAD~1:run.sh | "
                            "sed 's|^..|&/|')"));
    g_autoptr(Task) task = task_of(f, "");
    g_autofree char *dir = checkout(f, task);
    g_autofree char *missing = shell(dir, "cat missing.json; test ! -e tree/run.sh; "
                                          "cat tree/pkg/deep/a.txt");
    g_assert_cmpstr(missing, ==, "[\"run.sh\"]one");
}

static void an_unknown_commit_is_named(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    memset(f->commit, 'b', 40);
    g_autoptr(Task) task = task_of(f, "");
    g_autoptr(GError) error = NULL;
    const RepoOwner owner = {geteuid(), getegid()};
    g_assert_null(repo_checkout(f->state, task, NULL, &owner, &error));
    g_assert_nonnull(strstr(error->message, "has no commit bbbb"));
}

static void embedded_files_become_a_repository(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_autoptr(Task) task = task_of(
        f, ",\"files\":{\"src/a.c\":\"int a;\\n\",\"t.sh\":{\"text\":\":\\n\",\"mode\":\"755\"}}");
    g_autofree char *dir = checkout(f, task);
    g_autofree char *tree = g_build_filename(dir, "tree", NULL);
    g_autofree char *out = shell(tree, "git status --porcelain; cat src/a.c; test -x t.sh");
    g_assert_cmpstr(out, ==, "int a;");
}

static void a_cached_repository_is_listed_and_fetched_again(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_autoptr(GError) error = NULL;
    g_assert_true(repo_add(f->state, "o/n", f->source, NULL, &error));
    g_autoptr(GPtrArray) list = repo_list(f->state, &error);
    g_assert_cmpuint(list->len, ==, 1);
    const RepoInfo *info = list->pdata[0];
    g_assert_cmpstr(info->name, ==, "o/n");
    g_assert_cmpstr(info->url, ==, f->source);
    g_assert_true(repo_fetch(f->state, "o/n", NULL, &error));
    g_assert_false(repo_fetch(f->state, "o/other", NULL, &error));
    g_assert_nonnull(strstr(error->message, "not added yet"));
}

static void a_file_url_goes_through_the_transport(Fixture *f, gconstpointer data)
{
    (void)data;
    if (f->dir == NULL)
        return;
    g_autofree char *bare = g_build_filename(f->dir, "remote", NULL);
    g_autofree char *clone = g_strdup_printf("git clone -q --bare . %s", bare);
    g_free(shell(f->source, clone));
    g_autofree char *url = g_strconcat("file://localhost", bare, NULL);
    g_autoptr(GError) error = NULL;
    gboolean ok = repo_add(f->state, "o/n", url, NULL, &error);
    g_assert_no_error(error);
    g_assert_true(ok);
}

#define CASE(name) g_test_add("/repo/" #name, Fixture, NULL, set_up, name, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    CASE(a_checkout_is_clean_and_knows_only_the_base);
    CASE(the_datasets_commit_id_resolves);
    CASE(a_missing_blob_is_left_out_and_listed);
    CASE(an_unknown_commit_is_named);
    CASE(embedded_files_become_a_repository);
    CASE(a_cached_repository_is_listed_and_fetched_again);
    CASE(a_file_url_goes_through_the_transport);
    return g_test_run();
}
