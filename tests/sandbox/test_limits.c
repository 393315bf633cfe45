/*
 * Commands that take too much, stay too long or will not die: the outcome is typed, the numbers
 * say where they come from, and nothing is left.
 */
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <linux/capability.h>
#include <string.h>
#include <unistd.h>

#define MIB (1u << 20)

static BoxResult run_in(const BoxSpec *spec, const char *line, char **ret_text)
{
    g_autoptr(Box) box = lab_open(spec);
    BoxResult result = {0};
    g_autofree char *text = lab_sh(box, line, &result);
    if (ret_text != NULL)
        *ret_text = g_steal_pointer(&text);
    g_autoptr(GArray) left = lab_box_pids(spec->slot);
    /* The keeper, and the spare one or the starter: but nothing of the command. */
    for (guint i = 0; i < left->len; i++)
        g_assert_true(lab_is_ours(g_array_index(left, int, i)));
    return result;
}

static void expect_outcome(const char *line, BoxOutcome outcome)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.wall_ms = lab_ms(10000);
    g_auto(BoxResult) result = run_in(&spec, line, NULL);
    if (result.outcome != outcome)
        g_test_fail_printf("%s: expected %s, got %s", line, box_outcome_str(outcome),
                           box_outcome_str(result.outcome));
}

static void assert_bytes(GBytes *bytes, const char *expect, gsize len)
{
    gsize n = 0;
    const char *data = g_bytes_get_data(bytes, &n);
    g_assert_cmpuint(n, ==, len);
    g_assert_true(len == 0 || memcmp(data, expect, len) == 0);
}

static void a_memory_hog_is_out_of_memory(void)
{
    static const char *const kinds[] = {"private", "shared", "memfd", "sysv"};
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
        BoxSpec spec = lab_spec(1000);
        g_autofree char *text = NULL;
        g_autofree char *line = g_strdup_printf("/payload/payload hog %s 400", kinds[i]);
        g_auto(BoxResult) result = run_in(&spec, line, &text);
        if (result.outcome != BOX_OUT_OF_MEMORY)
            g_test_fail_printf("%s: %s, %s, peak %" G_GUINT64_FORMAT, kinds[i],
                               box_outcome_str(result.outcome), text, result.mem_peak_bytes);
        if (result.mem_by == BOX_BY_CGROUP1 || result.mem_by == BOX_BY_CGROUP2) {
            g_assert_cmpuint(result.mem_peak_bytes, <=, spec.limits.mem_bytes);
            g_assert_cmpuint(result.mem_peak_bytes, >, spec.limits.mem_bytes / 2);
            g_assert_cmpuint(result.oom_kills, >=, 1);
        }
    }
}

/* Does a group hold memory here? A result's mem_by says who knew its peak. */
static gboolean is_grouped(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    return box_enforced(box) & BOX_LAYER_CGROUP;
}

static void what_no_process_maps_is_charged_too(void)
{
    static const char *const kinds[] = {"/tmp/x", "/dev/shm/x", "./x", "pipes", "sockets"};
    if (!is_grouped()) {
        g_test_skip("no memory group here: the sampler sees what processes map");
        return;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
        BoxSpec spec = lab_spec(1000);
        spec.limits.mem_bytes = 64 * MIB;
        spec.limits.tmp_bytes = spec.limits.disk_bytes = 512 * MIB;
        spec.limits.file_bytes = 0;
        g_autofree char *text = NULL;
        g_autofree char *line = g_strdup_printf("/payload/payload hog %s 200", kinds[i]);
        g_auto(BoxResult) result = run_in(&spec, line, &text);
        if (result.outcome != BOX_OUT_OF_MEMORY)
            g_test_fail_printf("%s: %s, %s, peak %" G_GUINT64_FORMAT, kinds[i],
                               box_outcome_str(result.outcome), text, result.mem_peak_bytes);
    }
}

static void what_is_left_after_a_kill_for_memory_is_killed(void)
{
    BoxSpec spec = lab_spec(1000);
    gint64 start = clock_mono_ns();
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload hog private 400 & sleep 1000", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_OUT_OF_MEMORY);
    g_assert_cmpint((clock_mono_ns() - start) / 1000000, <, (gint64)lab_ms(8000));
}

static void a_box_outlives_a_command_killed_for_memory(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) one = {0}, two = {0};
    g_autofree char *first = lab_sh(box, "/payload/payload hog private 400", &one);
    g_autofree char *second = lab_sh(box, "echo alive", &two);
    g_assert_cmpint(one.outcome, ==, BOX_OUT_OF_MEMORY);
    g_assert_cmpstr(second, ==, "alive");
}

static void a_large_reservation_is_not_memory(void)
{
    BoxSpec spec = lab_spec(1000);
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload reserve", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpuint(result.mem_peak_bytes, <, spec.limits.mem_bytes / 2);
}

static void a_file_ends_at_its_limit(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.file_bytes = MIB;
    g_autofree char *text = NULL;
    g_auto(BoxResult) result =
        run_in(&spec, "head -c 2000000 /dev/zero > f; echo $?; stat -c %s f", &text);
    g_assert_cmpstr(text, ==, "153\n1048576"); /* SIGXFSZ */
}

static void descriptors_are_bounded_by_their_limit(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.nofile = 50;
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec, "ulimit -n; /payload/payload open_many", &text);
    g_assert_cmpstr(text, ==, "50\nbounded EMFILE");
}

static void talking_is_not_idle(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.idle_ms = lab_ms(400);
    g_auto(BoxResult) result =
        run_in(&spec, "for i in 1 2 3 4 5; do echo $i; sleep 0.15; done", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
}

/* The word in the report's limits. */
static char *limit_by(const Box *box, const char *name)
{
    g_autofree char *text = box_report_json(box);
    g_autoptr(json_t) report = json_parse(text, strlen(text), NULL);
    return g_strdup(json_want_str(json_object_get(report, "limits"), name, NULL));
}

static void a_cpu_cap_holds_back_two_spinners(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.cpu_milli = 250;
    g_autoptr(Box) box = lab_open(&spec);
    g_autofree char *by = limit_by(box, "cpu_milli");
    BoxCommand command = {
        .argv = (const char *const[]){"/bin/sh", "-c",
                                      "/payload/payload spin & /payload/payload spin", NULL},
        .wall_ms = 1200};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(box, &command, &result, NULL));
    guint64 used_us = result.cpu_user_us + result.cpu_sys_us;
    g_test_message("capped by %s: %" G_GUINT64_FORMAT " us of 1200 ms", by, used_us);
    g_assert_cmpint(result.outcome, ==, BOX_TIMED_OUT);
    if (g_str_equal(by, "affinity"))
        g_assert_cmpuint(used_us, <, 1400000); /* one CPU at most */
    else /* two spinners use 2.4 s; an emulated machine counts coarsely */
        g_assert_cmpuint(used_us, <, MIN(lab_ms(500000), 1000000));
}

static void every_limit_names_who_holds_it(void)
{
    static const char *const names[] = {"wall",   "idle", "output", "cpu",   "cpu_milli",
                                        "memory", "swap", "pids",   "disk",  "inodes",
                                        "tmp",    "file", "nofile", "stack", "cpu_weight"};
    BoxSpec spec = lab_spec(1000);
    spec.limits.idle_ms = spec.limits.cpu_ms = 1000;
    spec.limits.cpu_milli = 1000;
    spec.limits.cpu_weight = 200;
    g_autoptr(Box) box = lab_open(&spec);
    gboolean grouped = box_enforced(box) & BOX_LAYER_CGROUP;
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *by = limit_by(box, names[i]);
        g_assert_nonnull(by);
        g_assert_cmpstr(by, !=, "unlimited");
        gboolean may_lack = g_str_equal(names[i], "swap") || g_str_equal(names[i], "cpu_weight");
        if (grouped || !may_lack)
            g_assert_cmpstr(by, !=, "nobody");
    }
}

static gboolean may_set_floors(void)
{
    g_autofree char *status = NULL;
    g_assert_true(g_file_get_contents("/proc/self/status", &status, NULL, NULL));
    const char *caps = strstr(status, "CapEff:\t");
    g_assert_nonnull(caps);
    return (g_ascii_strtoull(caps + strlen("CapEff:\t"), NULL, 16) >> CAP_SYS_RESOURCE) & 1;
}

/* Who has not CAP_SYS_RESOURCE sets no floor: its commands may take back all that was added. */
static void the_oom_score_of_a_command_stays_above_the_hosts(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *got = lab_sh(
        box,
        "cat /proc/self/oom_score_adj; sh -c 'echo 500 > /proc/self/oom_score_adj'; echo $?; "
        "sh -c 'echo 499 > /proc/self/oom_score_adj' 2>/dev/null; echo $?",
        &result);
    g_assert_true(g_str_has_prefix(got, "1000\n0\n"));
    g_assert_cmpint(g_str_has_suffix(got, "\n0"), ==, !may_set_floors());
}

static void limits_out_of_range_are_refused(void)
{
    const BoxLimits wrong[] = {{.cpu_weight = 10001},
                               {.cpu_milli = 1},
                               {.cpu_milli = 1000001},
                               {.mem_bytes = G_MAXUINT64, .swap_bytes = 1}};
    for (gsize i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;
        BoxSpec spec = lab_spec(1000);
        spec.limits = wrong[i];
        g_autoptr(Box) box = box_open(&spec, &error);
        g_assert_null(box);
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    }
}

static void files_on_tmpfs_are_charged_to_memory_or_quota(void)
{
    BoxSpec spec = lab_spec(0);
    spec.limits.tmp_bytes = 64 * MIB;
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload fill /tmp/x", &text);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpstr(text, ==, "ENOSPC");
}

static void the_workspace_has_a_quota(void)
{
    BoxSpec spec = lab_spec(0);
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec,
                                      "/payload/payload fill ./x; rm x; mkdir many; "
                                      "/payload/payload fill_inodes many",
                                      &text);
    g_assert_cmpstr(text, ==, "ENOSPC\nENOSPC");
}

static void the_root_has_a_quota(void)
{
    if (lab_is_user()) {
        g_test_skip("an ordinary user's box has a root it cannot write");
        return;
    }
    BoxSpec spec = lab_spec(0);
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload fill /usr/x", &text);
    g_assert_cmpstr(text, ==, "ENOSPC");
}

static void a_fork_bomb_ends_at_the_wall_limit(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.wall_ms = 700;
    gint64 start = clock_mono_ns();
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload fork_bomb", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_TIMED_OUT);
    g_assert_cmpint((clock_mono_ns() - start) / 1000000, <, (gint64)lab_ms(5000));
}

static void zombies_are_bounded(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload zombies", &text);
    g_assert_cmpstr(text, ==, "bounded");
}

static void what_stays_behind_is_counted_and_killed(void)
{
    BoxSpec spec = lab_spec(1000);
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload stay; sleep 1000 & true", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpint(result.exit_code, ==, 0);
    g_assert_cmpuint(result.leftover_procs, >=, 1);
}

static void a_child_that_holds_stdout_delays_nothing(void)
{
    BoxSpec spec = lab_spec(1000);
    gint64 start = clock_mono_ns();
    g_auto(BoxResult) result = run_in(&spec, "/payload/payload stay hold; echo x", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpint((clock_mono_ns() - start) / 1000000, <, (gint64)lab_ms(5000));
}

static void killing_everything_is_no_error_of_ours(void)
{
    BoxSpec spec = lab_spec(1000);
    g_auto(BoxResult) result = run_in(&spec, "sleep 100 & kill -9 -1; kill -9 $$", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_SIGNALED);
    g_assert_cmpint(result.signal, ==, SIGKILL);
}

static void exit_137_and_sigkill_are_not_out_of_memory(void)
{
    expect_outcome("exit 137", BOX_EXITED);
    expect_outcome("kill -9 $$", BOX_SIGNALED);
}

static void a_stack_overflow_is_a_segfault(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *text = lab_try(box, "stack", &result);
    g_assert_cmpint(result.outcome, ==, BOX_SIGNALED);
    g_assert_cmpint(result.signal, ==, SIGSEGV);
}

static void sleeping_stopping_and_ignoring_end_at_the_wall_limit(void)
{
    static const char *const lines[] = {"sleep 1000", "kill -STOP $$",
                                        "trap '' TERM INT HUP; sleep 1000 & wait; wait"};
    for (gsize i = 0; i < G_N_ELEMENTS(lines); i++) {
        BoxSpec spec = lab_spec(1000);
        spec.limits.wall_ms = 300;
        g_auto(BoxResult) result = run_in(&spec, lines[i], NULL);
        g_assert_cmpint(result.outcome, ==, BOX_TIMED_OUT);
        g_assert_cmpuint(result.wall_us, >=, 300000);
        g_assert_cmpuint(result.wall_us, <, lab_ms(5000) * 1000);
    }
}

static void burning_cpu_ends_at_the_cpu_limit(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.cpu_ms = 500;
    g_auto(BoxResult) result =
        run_in(&spec, "/payload/payload spin & /payload/payload spin & wait", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_CPU_LIMIT);
    g_assert_cmpuint(result.cpu_user_us + result.cpu_sys_us, >=, 400000);
}

static void silence_ends_at_the_idle_limit(void)
{
    BoxSpec spec = lab_spec(1000);
    spec.limits.idle_ms = lab_ms(200);
    g_auto(BoxResult) result = run_in(&spec, "echo start; sleep 1000", NULL);
    g_assert_cmpint(result.outcome, ==, BOX_IDLE_LIMIT);
    g_assert_cmpuint(result.out_bytes, ==, 6);
}

static void a_flood_of_output_is_cut_and_ended(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autofree char *text = NULL;
    g_auto(BoxResult) result = run_in(&spec, "yes flood", &text);
    g_assert_cmpint(result.outcome, ==, BOX_OUTPUT_LIMIT);
    g_assert_true(result.truncated);
    g_assert_cmpuint(g_bytes_get_size(result.out), <, 2 * MIB);
    g_assert_cmpuint(result.out_bytes, >, spec.limits.output_bytes_kill);
}

static void output_is_kept_byte_for_byte(void)
{
    BoxSpec spec = lab_spec(1000);
    g_auto(BoxResult) result = run_in(&spec, "printf '\\377\\000x'; printf e >&2", NULL);
    assert_bytes(result.out, "\377\0x", 3);
    assert_bytes(result.err, "e", 1);
    g_assert_false(result.truncated);
}

static void merged_output_keeps_its_order(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    BoxCommand command = {
        .argv = (const char *const[]){"/bin/sh", "-c", "echo 1; echo 2 >&2; echo 3", NULL},
        .merge = TRUE};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(box, &command, &result, NULL));
    assert_bytes(result.out, "1\n2\n3\n", 6);
}

static void standard_input_is_fed_and_never_blocks(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_autofree char *big = g_strnfill(3 * MIB, 'x');
    const char *const lines[] = {"wc -c", "true"};
    for (gsize i = 0; i < 2; i++) {
        BoxCommand command = {.argv = (const char *const[]){"/bin/sh", "-c", lines[i], NULL},
                              .stdin_data = big,
                              .stdin_len = 3 * MIB};
        g_auto(BoxResult) result = {0};
        g_assert_true(box_exec(box, &command, &result, NULL));
        g_assert_cmpint(result.outcome, ==, BOX_EXITED);
        if (i == 0)
            assert_bytes(result.out, "3145728\n", 8);
    }
}

static void a_cancelled_command_is_cancelled(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    int ends[2];
    g_assert_cmpint(pipe2(ends, O_CLOEXEC), ==, 0);
    close(ends[1]); /* readable: the end of the stream */
    BoxCommand command = {.argv = (const char *const[]){"sleep", "1000", NULL},
                          .cancel_fd = ends[0]};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(box, &command, &result, NULL));
    g_assert_cmpint(result.outcome, ==, BOX_CANCELLED);
    close(ends[0]);
}

static void what_cannot_start_is_a_start_error(void)
{
    static const struct {
        const char *program;
        int err;
    } rows[] = {{"/nonexistent", ENOENT},
                {"nonexistent", ENOENT},
                {"/etc/passwd", EACCES},
                {"/usr", EACCES}};
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        BoxCommand command = {.argv = (const char *const[]){rows[i].program, NULL}};
        g_auto(BoxResult) result = {0};
        g_assert_true(box_exec(box, &command, &result, NULL));
        g_assert_cmpint(result.outcome, ==, BOX_START_ERROR);
        g_assert_cmpint(result.start_errno, ==, rows[i].err);
    }
}

static BoxResult put(Box *box, const char *path, const char *line)
{
    BoxFile file = {path, "mine", 4, 0640};
    BoxCommand command = {
        .argv = (const char *const[]){"/bin/sh", "-c", line, NULL}, .files = &file, .n_files = 1};
    BoxResult result = {0};
    g_assert_true(box_exec(box, &command, &result, NULL));
    return result;
}

static void files_of_the_supervisor_win_over_what_stands_there(void)
{
    static const char *const traps[] = {"mkdir -p f/g/h; touch f/g/h/i", "mkfifo f",
                                        "ln -s /etc/passwd f", "ln -s nowhere f",
                                        "echo theirs > f; chmod 000 f"};
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    for (gsize i = 0; i < G_N_ELEMENTS(traps); i++) {
        g_auto(BoxResult) trapped = {0};
        g_autofree char *line = g_strdup_printf("rm -rf f; %s", traps[i]);
        g_autofree char *text = lab_sh(box, line, &trapped);
        g_auto(BoxResult) result = put(box, "/testbed/f", "cat f; stat -c ' %a %u' f");
        assert_bytes(result.out, "mine 640 1000\n", 14);
    }
}

static void a_symlink_on_the_way_of_a_file_is_a_start_error(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) trapped = {0};
    g_autofree char *text = lab_sh(box, "ln -s /tmp d", &trapped);
    g_auto(BoxResult) result = put(box, "/testbed/d/f", "true");
    g_assert_cmpint(result.outcome, ==, BOX_START_ERROR);
    g_assert_cmpint(result.start_errno, ==, ELOOP);
}

static void writes_last_as_long_as_the_box(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) one = {0}, two = {0};
    g_autofree char *first = lab_sh(box, "echo kept > x; echo kept > /tmp/x", &one);
    g_autofree char *second = lab_sh(box, "cat x /tmp/x", &two);
    g_assert_cmpstr(second, ==, "kept\nkept");
}

#define ADD(fn) g_test_add_func("/limits/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(a_memory_hog_is_out_of_memory);
    ADD(what_no_process_maps_is_charged_too);
    ADD(what_is_left_after_a_kill_for_memory_is_killed);
    ADD(a_box_outlives_a_command_killed_for_memory);
    ADD(a_large_reservation_is_not_memory);
    ADD(files_on_tmpfs_are_charged_to_memory_or_quota);
    ADD(the_workspace_has_a_quota);
    ADD(the_root_has_a_quota);
    ADD(a_fork_bomb_ends_at_the_wall_limit);
    ADD(zombies_are_bounded);
    ADD(what_stays_behind_is_counted_and_killed);
    ADD(a_child_that_holds_stdout_delays_nothing);
    ADD(killing_everything_is_no_error_of_ours);
    ADD(exit_137_and_sigkill_are_not_out_of_memory);
    ADD(a_stack_overflow_is_a_segfault);
    ADD(sleeping_stopping_and_ignoring_end_at_the_wall_limit);
    ADD(burning_cpu_ends_at_the_cpu_limit);
    ADD(silence_ends_at_the_idle_limit);
    ADD(a_flood_of_output_is_cut_and_ended);
    ADD(output_is_kept_byte_for_byte);
    ADD(merged_output_keeps_its_order);
    ADD(standard_input_is_fed_and_never_blocks);
    ADD(a_cancelled_command_is_cancelled);
    ADD(what_cannot_start_is_a_start_error);
    ADD(files_of_the_supervisor_win_over_what_stands_there);
    ADD(a_symlink_on_the_way_of_a_file_is_a_start_error);
    ADD(writes_last_as_long_as_the_box);
    ADD(a_file_ends_at_its_limit);
    ADD(descriptors_are_bounded_by_their_limit);
    ADD(talking_is_not_idle);
    ADD(a_cpu_cap_holds_back_two_spinners);
    ADD(every_limit_names_who_holds_it);
    ADD(the_oom_score_of_a_command_stays_above_the_hosts);
    ADD(limits_out_of_range_are_refused);
    return lab_end(g_test_run());
}
