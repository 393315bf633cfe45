/*
 * Boxes that live for many commands: what runs on, what is typed in, files and changes from
 * outside.
 */
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define SLOT 130u

static char *text_of(const BoxResult *result)
{
    gsize len = 0;
    const char *data = g_bytes_get_data(result->out, &len);
    return g_strndup(data, len);
}

static Box *open_plain(guint uid)
{
    BoxSpec spec = lab_spec(uid);
    spec.slot = SLOT;
    return lab_open(&spec);
}

static void run(Box *box, BoxCommand *command, const char *line, BoxResult *ret)
{
    g_autoptr(GError) error = NULL;
    command->argv = (const char *const[]){"/bin/sh", "-c", line, NULL};
    gboolean ok = box_exec(box, command, ret, &error);
    g_assert_no_error(error);
    g_assert_true(ok);
    g_assert_no_error(error);
}

/* The background process is forked; this waits until it has become what it is to be. */
#define START_SLEEP  "sleep 100 >/dev/null 2>&1 & while ! grep -q sleep /proc/$!/comm; do :; done"
#define COUNT_SLEEPS "for p in /proc/[0-9]*; do cat $p/comm; done | grep -c sleep"

static void what_is_kept_lives_until_the_reset(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(1000);
    BoxCommand keep = {.keep_background = TRUE}, plain = {0};
    g_auto(BoxResult) result = {0};
    run(box, &keep, START_SLEEP, &result);
    g_assert_cmpuint(result.leftover_procs, ==, 1);
    run(box, &keep, COUNT_SLEEPS, &result);
    g_autofree char *seen = text_of(&result);
    g_assert_cmpstr(seen, ==, "1\n");
    /* A command that keeps nothing has a pid namespace of its own, and ends nothing of the
     * other. */
    run(box, &plain, COUNT_SLEEPS, &result);
    g_autofree char *apart = text_of(&result);
    g_assert_cmpstr(apart, ==, "0\n");
    g_autoptr(GArray) pids = lab_box_pids(SLOT);
    g_assert_true(box_reset(box, &error));
    g_assert_no_error(error);
    run(box, &keep, COUNT_SLEEPS, &result);
    g_autofree char *gone = text_of(&result);
    g_assert_cmpstr(gone, ==, "0\n");
}

static void a_limit_ends_the_command_and_not_what_was_kept(void)
{
    g_autoptr(Box) box = open_plain(1000);
    BoxCommand keep = {.keep_background = TRUE};
    g_auto(BoxResult) result = {0};
    run(box, &keep, START_SLEEP, &result);
    keep.wall_ms = 200;
    run(box, &keep, "(sleep 50 &) ; sleep 60", &result);
    g_assert_cmpint(result.outcome, ==, BOX_TIMED_OUT);
    keep.wall_ms = 0;
    run(box, &keep,
        "tr '\\0' ' ' < /dev/null; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; "
        "done | grep '^sleep' | sort",
        &result);
    g_autofree char *left = text_of(&result);
    g_assert_cmpstr(left, ==, "sleep 100 \n");
}

/* Whatever they keep, the next command gets an outcome, and a reset helps. */
static void kept_processes_cannot_make_the_box_fail(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = lab_spec(1000);
    spec.slot = SLOT;
    spec.limits.pids = 20;
    g_autoptr(Box) box = lab_open(&spec);
    BoxCommand keep = {.keep_background = TRUE}, plain = {0};
    g_auto(BoxResult) result = {0};
    for (int i = 0; i < 3; i++) {
        run(box, &keep,
            "exec >/dev/null 2>&1; i=0; while [ $i -lt 60 ]; do i=$((i+1)); sleep 100 & done",
            &result);
        run(box, &plain, "true", &result);
        g_assert_true(result.outcome == BOX_EXITED || result.outcome == BOX_START_ERROR);
    }
    g_assert_true(box_reset(box, &error));
    g_assert_no_error(error);
    run(box, &plain, "true", &result);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpint(result.exit_code, ==, 0);
}

static void a_start_error_costs_the_session_nothing(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(1000);
    BoxCommand keep = {.keep_background = TRUE};
    g_auto(BoxResult) result = {0};
    run(box, &keep, START_SLEEP, &result);
    keep.argv = (const char *const[]){"/nonexistent", NULL};
    g_assert_true(box_exec(box, &keep, &result, &error));
    g_assert_cmpint(result.outcome, ==, BOX_START_ERROR);
    run(box, &keep, COUNT_SLEEPS, &result);
    g_autofree char *left = text_of(&result);
    g_assert_cmpstr(left, ==, "1\n");
}

/* Waits for the run's next bit of output to contain `want`. */
typedef struct Heard {
    GString *text;
} Heard;

static void hear(gpointer data, gboolean is_err, const void *bytes, gsize len)
{
    (void)is_err;
    g_string_append_len(((Heard *)data)->text, bytes, (gssize)len);
}

static void step_until(BoxRun *run, const Heard *heard, const char *want)
{
    g_autoptr(GError) error = NULL;
    while (strstr(heard->text->str, want) == NULL && !box_run_is_done(run)) {
        GPollFD polled[BOX_RUN_FDS];
        int wait_ms;
        box_run_poll(run, polled, &wait_ms);
        g_poll(polled, BOX_RUN_FDS, wait_ms);
        g_assert_true(box_run_step(run, &error));
        g_assert_no_error(error);
    }
    if (strstr(heard->text->str, want) == NULL)
        g_test_fail_printf("never heard %s, only %s", want, heard->text->str);
}

static void input_can_come_later(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(1000);
    Heard heard = {g_string_new(NULL)};
    BoxCommand command = {.argv = (const char *const[]){"/bin/sh", "-c",
                                                        "while read l; do echo \"got $l\"; done; "
                                                        "echo over; exit 3",
                                                        NULL},
                          .stdin_open = TRUE,
                          .on_output = hear,
                          .on_output_data = &heard};
    BoxRun *run = box_start(box, &command, &error);
    g_assert_no_error(error);
    g_assert_true(box_run_write(run, "one\n", 4, &error));
    step_until(run, &heard, "got one\n");
    g_assert_true(box_run_write(run, "two\n", 4, &error));
    step_until(run, &heard, "got two\n");
    box_run_end_input(run);
    g_auto(BoxResult) result = {0};
    g_assert_true(box_run_finish(run, &result, &error));
    g_assert_cmpint(result.exit_code, ==, 3);
    g_assert_nonnull(strstr(heard.text->str, "over\n"));
    g_string_free(heard.text, TRUE);
}

/* A persistent shell on a terminal: state stays between lines, ^C ends what runs in it. */
static void a_shell_on_a_terminal_keeps_its_state(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(0);
    Heard heard = {g_string_new(NULL)};
    BoxCommand command = {.argv = (const char *const[]){"/bin/bash", "--norc", "-i", NULL},
                          .terminal = TRUE,
                          .rows = 30,
                          .cols = 100,
                          .on_output = hear,
                          .on_output_data = &heard};
    if (!g_file_test("/bin/bash", G_FILE_TEST_EXISTS)) {
        g_test_skip("bash is not installed");
        return;
    }
    BoxRun *run = box_start(box, &command, &error);
    g_assert_no_error(error);
    const char *const lines[][2] = {{"cd /tmp; x=4$((1+1)); stty size\n", "30 100"},
                                    {"echo here $PWD $x\n", "here /tmp 42"},
                                    {"sh -c 'echo g\"\"o; exec sleep 100'\n", "go\r\n"},
                                    {"\003", "^C"},
                                    {"echo still $x\n", "still 42"}};
    for (gsize i = 0; i < G_N_ELEMENTS(lines); i++) {
        g_assert_true(box_run_write(run, lines[i][0], strlen(lines[i][0]), &error));
        step_until(run, &heard, lines[i][1]);
        g_string_truncate(heard.text, 0);
    }
    /* The file side works while the shell is open. */
    g_assert_true(box_file_write(box, "note", "from outside", 12, 0644, &error));
    g_assert_no_error(error);
    g_assert_true(box_run_write(run, "cat /testbed/note\n", 18, &error));
    step_until(run, &heard, "from outside");
    g_assert_true(box_run_write(run, "exit 5\n", 7, &error));
    g_auto(BoxResult) result = {0};
    g_assert_true(box_run_finish(run, &result, &error));
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpint(result.exit_code, ==, 5);
    g_string_free(heard.text, TRUE);
}

static void expect_error(gpointer value, GError **error, int code)
{
    g_assert_null(value);
    g_assert_error(*error, ASSAY_ERROR, code);
    g_clear_error(error);
}

static void files_are_read_written_and_listed_from_outside(gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(GPOINTER_TO_UINT(data));
    BoxCommand plain = {0};
    g_auto(BoxResult) result = {0};
    run(box, &plain,
        "mkdir d; printf 'a\\0b' > d/f; ln -s f d/l; mkfifo d/p; chmod 640 d/f; "
        "printf x > \"$(printf 'd/n\\nq\\377')\"",
        &result);
    g_autoptr(GBytes) read = box_file_read(box, "d/f", 100, &error);
    g_assert_no_error(error);
    g_assert_cmpmem(g_bytes_get_data(read, NULL), (int)g_bytes_get_size(read), "a\0b", 3);
    expect_error(box_file_read(box, "/testbed/d/f", 2, &error), &error, ASSAY_ERROR_LIMIT);
    g_autoptr(GPtrArray) list = box_file_list(box, "d", 10, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(list->len, ==, 4);
    const BoxFileInfo *first = g_ptr_array_index(list, 0), *third = g_ptr_array_index(list, 2);
    g_assert_cmpstr(first->name, ==, "f");
    g_assert_cmpint(first->kind, ==, BOX_FILE_REGULAR);
    g_assert_cmpuint(first->mode, ==, 0640);
    g_assert_cmpuint(first->size, ==, 3);
    g_assert_cmpstr(third->name, ==, "n\nq\377");
    expect_error(box_file_list(box, "d", 3, &error), &error, ASSAY_ERROR_LIMIT);
    expect_error(box_file_read(box, "d/none", 9, &error), &error, ASSAY_ERROR_NOT_FOUND);
    expect_error(box_file_read(box, "d/l", 9, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
    expect_error(box_file_read(box, "d/p", 9, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
    expect_error(box_file_read(box, "d", 9, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
    expect_error(box_file_read(box, "../etc/passwd", 9, &error), &error, ASSAY_ERROR_INPUT);

    g_assert_true(box_file_write(box, "d/new", "text\n", 5, 0600, &error));
    g_assert_true(box_file_write(box, "d/f", "more\n", 5, 0755, &error));
    g_assert_no_error(error);
    g_assert_false(box_file_write(box, "d/l", "x", 1, 0644, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_ALLOWED);
    g_clear_error(&error);
    run(box, &plain,
        "stat -c '%n %a %U' d/new d/f; cat d/new d/f; echo mine >> d/new; ls d | wc -l", &result);
    g_autofree char *inside = text_of(&result);
    g_autofree char *want =
        g_strdup_printf("d/new 600 %s\nd/f 755 %s\ntext\nmore\n6\n", data == NULL ? "root" : "box",
                        data == NULL ? "root" : "box");
    g_assert_cmpstr(inside, ==, want);
}

/* Links to where the host keeps its own, in every place of a path. */
static void no_link_leads_out(void)
{
    static const char *const links[] = {
        "/etc/passwd", "/proc/self/root/etc/shadow", "../../../../etc", "/proc/1/root", "/", "."};
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(0);
    BoxCommand plain = {0};
    g_auto(BoxResult) result = {0};
    for (gsize i = 0; i < G_N_ELEMENTS(links); i++) {
        g_autofree char *line = g_strdup_printf("rm -rf l; ln -s %s l", links[i]);
        run(box, &plain, line, &result);
        expect_error(box_file_read(box, "l", 100, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
        expect_error(box_file_read(box, "l/passwd", 100, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
        expect_error(box_file_list(box, "l", 100, &error), &error, ASSAY_ERROR_NOT_ALLOWED);
        g_assert_false(box_file_write(box, "l/x", "x", 1, 0644, &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_ALLOWED);
        g_clear_error(&error);
    }
    /* /proc of the tree is an empty directory from here: no process to go through. */
    g_autoptr(GPtrArray) proc = box_file_list(box, "/proc", 10, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(proc->len, ==, 0);
}

/* A directory swapped for a link to the host's /etc, as fast as the box can. */
static void a_swapped_directory_never_leads_out(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = open_plain(1000);
    BoxCommand plain = {0};
    g_auto(BoxResult) result = {0};
    run(box, &plain, "mkdir real; echo mine > real/passwd; ln -s /etc away; ln -s real here",
        &result);
    BoxCommand swap = {.argv = (const char *const[]){"/payload/payload", "swap_dirs", NULL}};
    BoxRun *swapping = box_start(box, &swap, &error);
    g_assert_no_error(error);
    guint mine = 0, refused = 0;
    for (int i = 0; i < 100000; i++) {
        g_autoptr(GError) local = NULL;
        g_autoptr(GBytes) got = box_file_read(box, "real/passwd", 1 << 20, &local);
        if (got != NULL) {
            g_assert_cmpmem(g_bytes_get_data(got, NULL), (int)g_bytes_get_size(got), "mine\n", 5);
            mine++;
        } else {
            refused++;
        }
    }
    g_assert_false(box_run_is_done(swapping));
    box_run_cancel(swapping);
    g_assert_true(box_run_finish(swapping, &result, &error));
    g_assert_cmpuint(mine, >, 0);
    g_assert_cmpuint(refused, >, 0);
}

static char *scratch;

static int make_base(void)
{
    g_autoptr(GError) error = NULL;
    scratch = g_dir_make_tmp("assay-live-XXXXXX", NULL);
    g_assert_cmpint(chmod(scratch, 0755), ==, 0);
    static const char *const files[][2] = {
        {"same", "same\n"}, {"edited", "old\n"}, {"removed", "r\n"},
        {"dir/a", "a\n"},   {"dir/b/c", "c\n"},  {"swap/x", "x\n"},
        {"file", "f\n"},    {"touched", "t\n"},  {"mode", "m\n"}};
    for (gsize i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_build_filename(scratch, "base", files[i][0], NULL);
        g_autofree char *dir = g_path_get_dirname(path);
        g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
        g_assert_true(g_file_set_contents(path, files[i][1], -1, NULL));
        g_assert_cmpint(chmod(path, 0644), ==, 0);
    }
    AUTO_FD top = open(scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_assert_true(tree_chown(top, "base", box_store_uid(), box_store_gid(), &error));
    g_autofree char *path = g_build_filename(scratch, "base", NULL);
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void describe(GString *out, const BoxSide *side)
{
    gsize len = 0;
    const char *data = side->data == NULL ? "" : g_bytes_get_data(side->data, &len);
    g_string_append_printf(out, " %o:%.*s", side->mode, (int)len, data);
}

static gboolean note_change(const BoxChange *change, gpointer data, GError **error)
{
    (void)error;
    GString *out = data;
    g_string_append(out, change->path);
    describe(out, &change->before);
    describe(out, &change->after);
    for (char *at = out->str; *at != '\0'; at++)
        if (*at == '\n')
            *at = '/';
    g_string_append_c(out, '|');
    return TRUE;
}

static void changes_are_those_of_the_upper_and_no_more(void)
{
    static const char *const want =
        "dir/a 100644:a/ 0:|dir/b/c 100644:c/ 0:|edited 100644:old/ 100644:new/|"
        "file 100644:f/ 0:|file/in 0: 100644:in/|link 0: 120777:../x|mode 100644:m/ 100755:m/|"
        "new/deep/f 0: 100644:f/|removed 100644:r/ 0:|swap 0: 100644:s/|swap/x 100644:x/ 0:|";
    g_autoptr(GError) error = NULL;
    const int base = make_base();
    BoxSpec spec = lab_spec(1000);
    spec.slot = SLOT;
    spec.work_fds = &base;
    spec.n_work = 1;
    g_autoptr(Box) box = lab_open(&spec);
    BoxCommand plain = {0};
    g_auto(BoxResult) result = {0};
    run(box, &plain,
        "echo new > edited; rm removed; rm -r dir; mkdir dir; mkdir -p new/deep; echo f > "
        "new/deep/f; "
        "rm -r swap; echo s > swap; rm file; mkdir file; echo in > file/in; ln -s ../x link; "
        "touch touched; chmod 755 mode; echo x > gone; rm gone; mkfifo pipe; mkdir empty",
        &result);
    for (int pass = 0; pass < 2; pass++) { /* the second time over a frozen generation */
        g_autoptr(GString) got = g_string_new(NULL);
        g_assert_true(box_changes(box, 100, 1 << 20, note_change, got, &error));
        g_assert_no_error(error);
        g_assert_cmpstr(got->str, ==, want);
        g_autoptr(BoxSnapshot) snapshot = box_snapshot(box, NULL);
        if (snapshot == NULL)
            break;
    }
    g_autoptr(GString) ignored = g_string_new(NULL);
    g_assert_false(box_changes(box, 3, 1 << 20, note_change, ignored, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_clear_error(&error);
    run(box, &plain, "head -c 3000000 /dev/zero > big", &result);
    g_assert_false(box_changes(box, 100, 1 << 20, note_change, ignored, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_clear_pointer(&box, box_close);
    close(base);
    tree_remove(AT_FDCWD, scratch, NULL);
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    g_test_add_func("/live/what_is_kept_lives_until_the_reset", what_is_kept_lives_until_the_reset);
    g_test_add_func("/live/a_limit_ends_the_command_and_not_what_was_kept",
                    a_limit_ends_the_command_and_not_what_was_kept);
    g_test_add_func("/live/kept_processes_cannot_make_the_box_fail",
                    kept_processes_cannot_make_the_box_fail);
    g_test_add_func("/live/a_start_error_costs_the_session_nothing",
                    a_start_error_costs_the_session_nothing);
    g_test_add_func("/live/input_can_come_later", input_can_come_later);
    g_test_add_func("/live/a_shell_on_a_terminal_keeps_its_state",
                    a_shell_on_a_terminal_keeps_its_state);
    g_test_add_data_func("/live/files_are_read_written_and_listed_from_outside/uid0",
                         GUINT_TO_POINTER(0), files_are_read_written_and_listed_from_outside);
    g_test_add_data_func("/live/files_are_read_written_and_listed_from_outside/uid1000",
                         GUINT_TO_POINTER(1000), files_are_read_written_and_listed_from_outside);
    g_test_add_func("/live/no_link_leads_out", no_link_leads_out);
    g_test_add_func("/live/a_swapped_directory_never_leads_out",
                    a_swapped_directory_never_leads_out);
    g_test_add_func("/live/changes_are_those_of_the_upper_and_no_more",
                    changes_are_those_of_the_upper_and_no_more);
    return lab_end(g_test_run());
}
