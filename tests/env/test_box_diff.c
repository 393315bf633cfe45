/*
 * The diff of a box, applied by git to what the box started from, gives what the box had.
 */
#include "env/box_diff.h"

#include "base/fd.h"
#include "base/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static char *top;

static char *shell(const char *dir, const char *script)
{
    const char *argv[] = {"/bin/sh", "-ec", script, NULL};
    g_autoptr(GError) error = NULL;
    char *out = NULL;
    g_autofree char *err = NULL;
    int status = -1;
    g_spawn_sync(dir, (char **)(gsize)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &out, &err, &status,
                 &error);
    g_assert_no_error(error);
    if (status != 0)
        g_error("%s: %s", script, err);
    return g_strchomp(out);
}

static gboolean boxes_work(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = {.limits = box_limits_default()};
    g_autoptr(Box) box = box_open(&spec, &error);
    if (box == NULL)
        printf("1..0 # SKIP no boxes on this host: %s\n", error->message);
    return box != NULL;
}

/* Everything that git keeps of a tree. */
#define PICTURE                                                                                    \
    "find . -mindepth 1 -path ./.git -prune -o \\( -type f -printf '%p %m ' -exec sha256sum {} "   \
    "\\; "                                                                                         \
    "-o -type l -printf '%p -> %l\\n' \\) | sed 's/ 6\\([0-9]*\\) / 6 /; s/ 7\\([0-9]*\\) / 7 /' " \
    "| sort"

#define MAKE                                                                                       \
    "mkdir -p d/e; seq 1 50 > long; echo a > a; echo x > d/x; echo y > d/e/y; printf 'no "         \
    "newline' > n; "                                                                               \
    "printf '\\0\\1\\2' > bin; echo m > mode; ln -s a link; : > empty; echo sp > 'a b'; "          \
    "printf q > \"$(printf 'q\\\"\\n\\303\\251')\"; chmod -R go=u-w ."

static const char *const sessions[] = {
    "true",
    "sed -i s/25/twenty-five/ long; echo more >> a; rm d/x; printf 'now\\n' > n",
    "chmod +x mode; rm link; ln -s d/x link; rm -r d; echo file > d",
    "printf '\\3\\4\\0' > bin; head -c 5000 /dev/urandom > bin2; : > made; rm empty; mkdir -p "
    "new/dir; "
    "echo f > new/dir/f; printf 'tail' >> n",
    "rm a; ln -s long a; rm link; echo not a link > link; echo t > 'tab\there'; rm 'a b'; echo > "
    "'c d'",
    "printf w > \"$(printf 'q\\\"\\n\\303\\251')\"; touch mode; echo m > mode; mkdir .git "
    "2>/dev/null; "
    "echo evil > .git/config; mkfifo pipe",
    "seq 1 3000 > long; rm -r d; mkdir d; echo new > d/x; mv n n2",
};

static void git_makes_of_it_what_the_box_had(void)
{
    g_autoptr(GError) error = NULL;
    for (gsize i = 0; i < G_N_ELEMENTS(sessions); i++) {
        g_free(shell(top, "rm -rf base out patch; mkdir base; cd base; " MAKE));
        AUTO_FD dir = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        g_assert_true(tree_chown(dir, "base", box_store_uid(), box_store_gid(), &error));
        AUTO_FD base = openat(dir, "base", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        const int work = base;
        BoxSpec spec = {.work_path = "/testbed",
                        .work_fds = &work,
                        .n_work = 1,
                        .slot = 170,
                        .limits = box_limits_default()};
        g_autoptr(Box) box = box_open(&spec, &error);
        g_assert_no_error(error);
        g_autofree char *line = g_strconcat(sessions[i], "; ", PICTURE, NULL);
        BoxCommand command = {.argv = (const char *const[]){"/bin/sh", "-c", line, NULL}};
        g_auto(BoxResult) result = {0};
        g_assert_true(box_exec(box, &command, &result, &error));
        g_assert_cmpint(result.outcome, ==, BOX_EXITED);
        gsize len;
        const char *data = g_bytes_get_data(result.out, &len);
        g_autofree char *inside = g_strchomp(g_strndup(data == NULL ? "" : data, len));

        g_autoptr(GString) patch = box_diff(box, &error);
        g_assert_no_error(error);
        g_autofree char *path = g_build_filename(top, "patch", NULL);
        g_assert_true(g_file_set_contents(path, patch->str, (gssize)patch->len, &error));
        g_assert_null(strstr(patch->str, ".git/"));
        g_autofree char *outside = shell(
            top,
            "cp -a base out; cd out; [ ! -s ../patch ] || git apply --binary ../patch; " PICTURE);
        if (!g_str_equal(inside, outside))
            g_test_fail_printf("session %u: in the box\n%s\nafter git apply\n%s\nof\n%s", (guint)i,
                               inside, outside, patch->str);
    }
}

/* Binary bodies aside: the two compress with different settings. */
static void what_git_itself_would_say(void)
{
    g_autoptr(GError) error = NULL;
    g_free(shell(top, "rm -rf base; mkdir base; cd base; " MAKE));
    AUTO_FD dir = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_assert_true(tree_chown(dir, "base", box_store_uid(), box_store_gid(), &error));
    AUTO_FD base = openat(dir, "base", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int work = base;
    static const char change[] =
        "sed -i s/25/twenty-five/ long; rm d/x; chmod +x mode; echo f > new; "
        "printf 'now' > n";
    BoxSpec spec = {.work_path = "/testbed",
                    .work_fds = &work,
                    .n_work = 1,
                    .slot = 170,
                    .limits = box_limits_default()};
    g_autoptr(Box) box = box_open(&spec, &error);
    g_assert_no_error(error);
    BoxCommand command = {.argv = (const char *const[]){"/bin/sh", "-c", change, NULL}};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(box, &command, &result, &error));
    g_autoptr(GString) patch = box_diff(box, &error);
    g_assert_no_error(error);
    g_autofree char *theirs =
        shell(top, "rm -rf theirs; cp -R base theirs; cd theirs; git init -q .; git config "
                   "user.email a@b; git config user.name a; "
                   "git add -A; git commit -qm base; sed -i s/25/twenty-five/ long; rm d/x; "
                   "chmod +x mode; echo f > new; printf 'now' > n; "
                   "git add -A; git diff --cached --binary --full-index HEAD");
    g_autofree char *ours = g_strchomp(g_strndup(patch->str, patch->len));
    g_assert_cmpstr(ours, ==, theirs);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!boxes_work())
        return 0;
    g_autofree char *git = g_find_program_in_path("git");
    if (git == NULL) {
        printf("1..0 # SKIP git is not installed\n");
        return 0;
    }
    top = g_dir_make_tmp("assay-diff-XXXXXX", NULL);
    g_assert_cmpint(chmod(top, 0755), ==, 0);
    g_test_add_func("/box_diff/git_makes_of_it_what_the_box_had", git_makes_of_it_what_the_box_had);
    g_test_add_func("/box_diff/what_git_itself_would_say", what_git_itself_would_say);
    int status = g_test_run();
    box_shutdown();
    tree_remove(AT_FDCWD, top, NULL);
    return status;
}
