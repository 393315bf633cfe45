/*
 * One command in an open box: start, pump, limits, accounting, verdict how it ended.
 *
 * Invariants:
 *   1. Only our own failures are errors. Whatever the command does, including killing everything
 *      it can reach, ends in an outcome.
 *   2. When a run is done no process of the command lives, unless it was asked to keep them.
 *   3. Memory is bounded by output_bytes_keep, whatever is written.
 *   4. When several causes hold, the first of: cancelled, output, oom, cpu, wall, idle, signal.
 *   5. box_run_step never waits.
 *
 * Not here: what happens inside (keeper*.c), getting an init to talk to (box_stage.c).
 */
#include "sandbox/box_degraded.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "sandbox/kernel.h"
#include "sandbox/box_request.h"
#include "sandbox/box_stage.h"
#include "sandbox/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#define PIPE_BYTES   (1 << 20)
#define TICK_MS      100   /* how often CPU time and oom kills are looked at */
#define KILL_SOFT_MS 5000  /* what an init that was asked is given */
#define KILL_WAIT_MS 20000 /* from SIGKILL to DONE; more means a stuck host */
#define DYING_MS     1000
#define CHUNK_BYTES  65536
#define INPUT_MAX    (16u << 20) /* waiting for a command that does not read */

struct BoxRun {
    Box *box;
    BoxCommand command;     /* shallow: the caller's, until the run is started */
    int out[2], err[2], in; /* out/err: read ends, then write ends until sent */
    BoxInit init;
    GBytes *stdin_data;
    gsize stdin_done;
    gboolean stdin_ends; /* close it once everything is written */
    Output kept[2];
    gint64 called_ns, start_ns, output_ns, killed_ns, ended_ns;
    guint64 wall_ms;
    gboolean peak_is_old;   /* the group's peak may be an earlier command's */
    guint64 mem_seen_bytes; /* then: the most that was seen */
    BoxOutcome cause;       /* why we killed it; NONE while we have not */
    CgroupUsage before;
    guint64 staged_oom_kills; /* when the command before it began */
    gboolean has_report, done, asked_hard;
    SpecReply reply;
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static gboolean make_pipe(int ends[2], GError **error)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "pipe");
    (void)fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES); /* smaller where the user's quota is used up */
    return TRUE;
}

static gboolean non_blocking(int fd, GError **error)
{
    return fcntl(fd, F_SETFL, O_NONBLOCK) == 0 || error_set_errno(error, errno, "fcntl");
}

static void run_free(BoxRun *run)
{
    int *const fds[] = {&run->out[0], &run->out[1], &run->err[0], &run->err[1], &run->in};
    for (gsize i = 0; i < G_N_ELEMENTS(fds); i++)
        close_fd(fds[i]);
    box_init_clear(&run->init);
    for (int i = 0; i < 2; i++) {
        g_clear_pointer(&run->kept[i].head, g_byte_array_unref);
        g_clear_pointer(&run->kept[i].tail, g_byte_array_unref);
    }
    g_clear_pointer(&run->stdin_data, g_bytes_unref);
    run->box->n_running--;
    g_free(run);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BoxRun, run_free)

/* Where init itself kills and counts, it is asked to; elsewhere the kernel does both. */
static gboolean init_watches(const Box *box)
{
    return box->copy_dir != NULL || box->is_sampled;
}

/* Ends the command: everything in its pid namespace dies with init; where earlier commands left
 * something that is to live, init kills this one. */
static void end(BoxRun *run, BoxOutcome cause)
{
    if (run->cause != BOX_NONE)
        return;
    run->cause = cause;
    run->killed_ns = clock_mono_ns();
    if (run->command.keep_background)
        box_init_order(&run->init, SPEC_ORDER_END, NULL);
    else
        kernel_pidfd_kill(run->init.pidfd, init_watches(run->box) ? SIGTERM : SIGKILL);
}

/* Init was asked and could not: the box may be lost with it. */
static void end_hard(BoxRun *run)
{
    run->asked_hard = TRUE;
    kernel_pidfd_kill(run->init.pidfd, SIGKILL);
    if (run->box->copy_dir != NULL)
        cgroup_kill(run->box->cgroup);
}

static void pass_on(const BoxRun *run, gboolean is_err, const char *data, gsize len)
{
    const BoxCommand *command = &run->command;
    if (command->tee_fd > 0)
        fd_write_all(command->tee_fd, data, len, NULL); /* a lost log line is not our end */
    if (command->on_output != NULL)
        command->on_output(command->on_output_data, is_err, data, len);
}

/* Reads what is there; closes at the end of the stream. */
static void drain(BoxRun *run, gboolean is_err)
{
    int *fd = is_err ? &run->err[0] : &run->out[0];
    char chunk[CHUNK_BYTES];
    while (*fd >= 0) {
        ssize_t n = read(*fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) { /* EIO: the last process has left the terminal */
            close_fd(fd);
            return;
        }
        run->output_ns = clock_mono_ns();
        output_add(&run->kept[is_err], chunk, (gsize)n);
        pass_on(run, is_err, chunk, (gsize)n);
        guint64 most = run->box->limits.output_bytes_kill;
        if (most > 0 && run->kept[0].total + run->kept[1].total > most)
            end(run, BOX_OUTPUT_LIMIT);
        if (run->cause != BOX_NONE && !run->done)
            return; /* a flood must not keep us from looking at the clock */
    }
}

static void feed(BoxRun *run)
{
    gsize len = 0;
    const char *data = run->stdin_data == NULL ? NULL : g_bytes_get_data(run->stdin_data, &len);
    gsize left = len - run->stdin_done;
    ssize_t n = left > 0 ? write(run->in, data + run->stdin_done, left) : 0;
    if (n > 0)
        run->stdin_done += (gsize)n;
    if ((run->stdin_done == len && run->stdin_ends) || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(&run->in);
}

static gboolean has_input(const BoxRun *run)
{
    return run->in >= 0 &&
           (run->stdin_ends ||
            (run->stdin_data != NULL && run->stdin_done < g_bytes_get_size(run->stdin_data)));
}

static gint64 ms_since(gint64 then_ns)
{
    return (clock_mono_ns() - then_ns) / 1000000;
}

static void check_limits(BoxRun *run)
{
    const BoxLimits *limits = &run->box->limits;
    if (run->peak_is_old)
        run->mem_seen_bytes = MAX(run->mem_seen_bytes, cgroup_memory(run->box->cgroup));
    if (limits->cpu_ms > 0 || limits->mem_bytes > 0) {
        CgroupUsage now = cgroup_usage(run->box->cgroup);
        guint64 cpu_us =
            now.cpu_user_us + now.cpu_sys_us - run->before.cpu_user_us - run->before.cpu_sys_us;
        if (now.oom_kills > run->before.oom_kills)
            end(run, BOX_OUT_OF_MEMORY);
        if (limits->cpu_ms > 0 && cpu_us >= limits->cpu_ms * 1000)
            end(run, BOX_CPU_LIMIT);
    }
    if (run->wall_ms > 0 && (guint64)ms_since(run->start_ns) >= run->wall_ms)
        end(run, BOX_TIMED_OUT);
    if (limits->idle_ms > 0 && (guint64)ms_since(run->output_ns) >= limits->idle_ms)
        end(run, BOX_IDLE_LIMIT);
}

/* Milliseconds until something has to be looked at. */
static int next_wait_ms(const BoxRun *run)
{
    const BoxLimits *limits = &run->box->limits;
    gint64 wait = limits->cpu_ms > 0 || limits->mem_bytes > 0 ? TICK_MS : 60000;
    if (run->cause != BOX_NONE)
        return TICK_MS;
    if (run->wall_ms > 0)
        wait = MIN(wait, (gint64)run->wall_ms - ms_since(run->start_ns) + 1);
    if (limits->idle_ms > 0)
        wait = MIN(wait, (gint64)limits->idle_ms - ms_since(run->output_ns) + 1);
    return (int)MAX(wait, 0);
}

static gboolean open_pipes(BoxRun *run, int *ret_stdin, GError **error)
{
    const BoxCommand *command = &run->command;
    int in[2] = {-1, -1};
    if (!make_pipe(run->out, error) || !non_blocking(run->out[0], error))
        return FALSE;
    if (!command->merge && (!make_pipe(run->err, error) || !non_blocking(run->err[0], error)))
        return FALSE;
    if (command->stdin_data == NULL && !command->stdin_open) {
        *ret_stdin = open("/dev/null", O_RDONLY | O_CLOEXEC);
        return *ret_stdin >= 0 || error_set_errno(error, errno, "open /dev/null");
    }
    if (!make_pipe(in, error))
        return FALSE;
    *ret_stdin = in[0];
    run->in = in[1];
    run->stdin_ends = !command->stdin_open;
    return non_blocking(run->in, error);
}

/* The terminal's master is both our end of its output and of its input. */
static gboolean take_terminal(BoxRun *run, GError **error)
{
    SpecReply reply;
    int master;
    if (!launch_receive(run->init.sock, &reply, &master, 1, error))
        return FALSE;
    if (reply.kind == SPEC_REPLY_DONE) { /* the command could not be started at all */
        run->reply = reply;
        run->has_report = TRUE;
        return TRUE;
    }
    run->out[0] = master;
    if (reply.kind != SPEC_REPLY_TERMINAL || master < 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    run->in = fcntl(master, F_DUPFD_CLOEXEC, 3);
    return run->in < 0 ? error_set_errno(error, errno, "dup") : non_blocking(master, error);
}

static gboolean send_request(BoxRun *run, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    AUTO_FD in = -1;
    if (!box_request_encode(run->box, &run->command, bytes, error))
        return FALSE;
    if (run->command.terminal)
        return box_init_send(&run->init, bytes, NULL, 0, error) && take_terminal(run, error);
    if (!open_pipes(run, &in, error))
        return FALSE;
    const int fds[] = {in, run->out[1], run->command.merge ? run->out[1] : run->err[1]};
    if (!box_init_send(&run->init, bytes, fds, G_N_ELEMENTS(fds), error))
        return FALSE;
    close_fd(&run->out[1]);
    close_fd(&run->err[1]);
    return TRUE;
}

/* An init could not get ready. Processes that earlier commands keep may be as many as there may be:
 * their doing, not ours. */
static gboolean is_crowded_out(BoxRun *run)
{
    if (!box_stage_has_session(run->box))
        return FALSE;
    run->reply = (SpecReply){.start_failed = SPEC_START_COMMAND, .err = EAGAIN};
    run->has_report = run->done = TRUE;
    run->ended_ns = clock_mono_ns();
    return TRUE;
}

/* The report, if init sent one; its end of the socket closes when it dies. */
static gboolean take_report(BoxRun *run, GError **error)
{
    SpecReply reply;
    g_autoptr(GError) local = NULL;
    if (launch_is_closed(run->init.sock)) {
        close_fd(&run->init.sock);
        return TRUE;
    }
    if (!launch_receive(run->init.sock, &reply, NULL, 0, &local)) {
        if (is_crowded_out(run))
            return TRUE;
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    if (reply.kind != SPEC_REPLY_DONE)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    run->reply = reply;
    run->has_report = TRUE;
    return TRUE;
}

/* With its report: is everything of the command dead, or to be kept? Else init's death says so. */
static gboolean is_over(const BoxRun *run)
{
    return run->command.keep_background || run->reply.leftover == 0;
}

static void finish(BoxRun *run)
{
    run->done = TRUE;
    run->ended_ns = clock_mono_ns();
    /* Every writer is dead, or none of our business: what is in the pipes is all there will be. */
    drain(run, FALSE);
    drain(run, TRUE);
}

void box_run_poll(const BoxRun *run, GPollFD ret_fds[BOX_RUN_FDS], int *ret_wait_ms)
{
    const int cancel = run->command.cancel_fd;
    const GPollFD fds[BOX_RUN_FDS] = {
        {.fd = run->init.pidfd, .events = G_IO_IN},
        {.fd = run->init.sock, .events = G_IO_IN},
        {.fd = run->out[0], .events = G_IO_IN},
        {.fd = run->err[0], .events = G_IO_IN},
        {.fd = has_input(run) ? run->in : -1, .events = G_IO_OUT},
        {.fd = cancel > 0 && run->cause == BOX_NONE ? cancel : -1, .events = G_IO_IN}};
    memcpy(ret_fds, fds, sizeof fds);
    *ret_wait_ms = run->done ? 0 : next_wait_ms(run);
}

gboolean box_run_step(BoxRun *run, GError **error)
{
    GPollFD polled[BOX_RUN_FDS];
    int wait_ms;
    if (run->done)
        return TRUE;
    box_run_poll(run, polled, &wait_ms);
    if (g_poll(polled, BOX_RUN_FDS, 0) < 0 && errno != EINTR)
        return error_set_errno(error, errno, "poll");
    if (polled[2].revents != 0)
        drain(run, FALSE);
    if (polled[3].revents != 0)
        drain(run, TRUE);
    if (polled[4].revents != 0)
        feed(run);
    if (polled[5].revents != 0)
        end(run, BOX_CANCELLED);
    if (polled[1].revents != 0 && !run->has_report && !take_report(run, error))
        return FALSE;
    if (polled[0].revents != 0 && !run->has_report && run->init.sock >= 0 &&
        !take_report(run, error))
        return FALSE;
    if (polled[0].revents != 0 || (run->has_report && is_over(run)))
        finish(run);
    if (run->done)
        return TRUE;
    check_limits(run);
    if (run->cause != BOX_NONE && !run->asked_hard && ms_since(run->killed_ns) > KILL_SOFT_MS)
        end_hard(run);
    if (run->cause != BOX_NONE && ms_since(run->killed_ns) > KILL_WAIT_MS)
        return error_set(error, ASSAY_ERROR_SYSTEM, "processes did not die within %d ms",
                         KILL_WAIT_MS);
    return TRUE;
}

gboolean box_run_is_done(const BoxRun *run)
{
    return run->done;
}

gboolean box_run_write(BoxRun *run, const void *data, gsize len, GError **error)
{
    gsize waiting = 0;
    const char *rest = run->stdin_data == NULL ? NULL : g_bytes_get_data(run->stdin_data, &waiting);
    waiting -= run->stdin_done;
    if (run->in < 0)
        return error_set(error, ASSAY_ERROR_CONFLICT, "the command's stdin is closed");
    if (len > INPUT_MAX - MIN(waiting, INPUT_MAX))
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "more than %u bytes wait for the command to read them", INPUT_MAX);
    g_autoptr(GByteArray) all = g_byte_array_sized_new((guint)(waiting + len));
    if (waiting > 0)
        g_byte_array_append(all, (const guint8 *)rest + run->stdin_done, (guint)waiting);
    g_byte_array_append(all, data, (guint)len);
    g_clear_pointer(&run->stdin_data, g_bytes_unref);
    run->stdin_data = g_byte_array_free_to_bytes(g_steal_pointer(&all));
    run->stdin_done = 0;
    feed(run);
    return TRUE;
}

gssize box_run_waiting(const BoxRun *run)
{
    gsize len = run->stdin_data == NULL ? 0 : g_bytes_get_size(run->stdin_data);
    return run->in < 0 ? -1 : (gssize)(len - run->stdin_done);
}

void box_run_end_input(BoxRun *run)
{
    if (run->command.terminal)
        box_run_write(run, "\x04", 1, NULL);
    else
        run->stdin_ends = TRUE;
    if (run->in >= 0 && !run->command.terminal)
        feed(run);
}

void box_run_resize(BoxRun *run, guint rows, guint cols)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    if (run->command.terminal && run->out[0] >= 0)
        (void)ioctl(run->out[0], TIOCSWINSZ, &size);
}

void box_run_cancel(BoxRun *run)
{
    if (!run->done)
        end(run, BOX_CANCELLED);
}

static void judge(const BoxRun *run, BoxResult *result)
{
    const SpecReply *reply = &run->reply;
    if (run->box->is_used_up) {
        result->outcome = BOX_OUT_OF_MEMORY;
        return;
    }
    if (run->has_report && reply->start_failed) {
        result->outcome = BOX_START_ERROR;
        result->start_errno = reply->err;
    } else if (run->has_report && WIFEXITED(reply->wait_status)) {
        result->outcome = BOX_EXITED;
        result->exit_code = WEXITSTATUS(reply->wait_status);
    } else {
        result->outcome = BOX_SIGNALED;
        result->signal = run->has_report ? WTERMSIG(reply->wait_status) : SIGKILL;
    }
    if (run->cause != BOX_NONE)
        result->outcome = run->cause;
    gboolean hard = run->cause == BOX_CANCELLED || run->cause == BOX_OUTPUT_LIMIT;
    if (!hard && (result->oom_kills > 0 || run->reply.sampled_oom))
        result->outcome = BOX_OUT_OF_MEMORY;
    else if (!hard && run->reply.sampled_cpu)
        result->outcome = BOX_CPU_LIMIT;
    else if (result->outcome == BOX_SIGNALED && result->signal == SIGXCPU &&
             run->box->limits.cpu_ms > 0)
        result->outcome = BOX_CPU_LIMIT;
}

static void account(const BoxRun *run, BoxResult *result)
{
    CgroupUsage now = cgroup_usage(run->box->cgroup);
    BoxBy cpu_by = cgroup_cpu_by(run->box->cgroup), mem_by = cgroup_mem_by(run->box->cgroup);
    result->cpu_by = cpu_by == BOX_BY_NOBODY ? BOX_BY_RUSAGE : cpu_by;
    result->cpu_user_us = run->reply.user_us;
    result->cpu_sys_us = run->reply.sys_us;
    if (cpu_by != BOX_BY_NOBODY) {
        result->cpu_user_us = now.cpu_user_us - run->before.cpu_user_us;
        result->cpu_sys_us = now.cpu_sys_us - run->before.cpu_sys_us;
    }
    result->mem_by = mem_by;
    result->mem_peak_bytes = now.mem_peak_bytes;
    if (mem_by == BOX_BY_NOBODY) {
        result->mem_by = run->box->is_sampled ? BOX_BY_SAMPLER : BOX_BY_RUSAGE;
        result->mem_peak_bytes = run->reply.peak_bytes;
    }
    if (run->peak_is_old && now.mem_peak_bytes <= run->before.mem_peak_bytes) {
        result->mem_by = BOX_BY_SAMPLER;
        result->mem_peak_bytes = MAX(run->mem_seen_bytes, cgroup_memory(run->box->cgroup));
    }
    result->oom_kills = (guint32)(now.oom_kills - run->before.oom_kills);
    result->pids_peak = (guint32)now.pids_peak;
    result->leftover_procs = run->reply.leftover;
}

/* Its socket closes a little before it is dead. */
static gboolean keeper_is_dead(const Box *box)
{
    GPollFD polled = {.fd = box->pidfd, .events = G_IO_IN};
    return g_poll(&polled, 1, DYING_MS) > 0;
}

/* The keeper and init share the memory limit; a command may leave so much on tmpfs that they are
 * killed for it, now or before this one. That is the commands' doing, not a failure of ours. */
static gboolean use_up_if_oom_since(BoxRun *run, guint64 kills_before)
{
    guint64 kills = cgroup_usage(run->box->cgroup).oom_kills;
    if (kills <= kills_before && !(kills > run->box->oom_kills && keeper_is_dead(run->box)))
        return FALSE;
    run->box->is_used_up = TRUE;
    run->done = TRUE;
    run->ended_ns = clock_mono_ns();
    return TRUE;
}

static gboolean use_up_if_oom(BoxRun *run)
{
    return use_up_if_oom_since(run, run->before.oom_kills);
}

/* Init died without a word and nobody we know of did it. The command cannot kill its init, so this
 * is our machine's doing; blaming the command would make it a verdict. It was staged while the last
 * one ran: killed for memory then, and counted, it may die a little later than it is taken. */
static gboolean init_was_lost(BoxRun *run, const BoxResult *result)
{
    return !run->box->is_used_up && !run->has_report && run->cause == BOX_NONE &&
           result->oom_kills == 0 && !use_up_if_oom_since(run, run->staged_oom_kills);
}

/* A step of ours failed on the way to the command, and no limit is the reason. */
static gboolean start_was_ours(const BoxRun *run, const BoxResult *result)
{
    return run->has_report && run->reply.start_failed == SPEC_START_OURS &&
           run->cause == BOX_NONE && result->oom_kills == 0 && !run->box->is_used_up;
}

static gboolean conclude(BoxRun *run, BoxResult *ret_result, GError **error)
{
    BoxResult result = {0};
    account(run, &result);
    if (init_was_lost(run, &result))
        return error_set(error, ASSAY_ERROR_SYSTEM, "the box's init was killed from outside");
    if (start_was_ours(run, &result))
        return error_set_errno(error, run->reply.err, "run a command: assay-box: %s",
                               run->reply.what);
    judge(run, &result);
    result.out_bytes = run->kept[0].total;
    result.err_bytes = run->kept[1].total;
    result.out = output_finish(&run->kept[0], &result.truncated);
    result.err = output_finish(&run->kept[1], &result.truncated);
    result.setup_us = (guint64)(run->start_ns - run->called_ns) / 1000;
    result.wall_us = (guint64)(run->ended_ns - run->start_ns) / 1000;
    result.teardown_us = (guint64)(clock_mono_ns() - run->ended_ns) / 1000;
    box_result_clear(ret_result);
    *ret_result = result;
    return TRUE;
}

static gboolean start(BoxRun *run, GError **error)
{
    if (run->box->is_used_up) {
        run->done = TRUE;
        run->start_ns = run->ended_ns = run->called_ns;
        return TRUE;
    }
    g_autoptr(GError) local = NULL;
    gboolean ok = box_stage_take(run->box, run->command.keep_background, &run->init, &local) &&
                  send_request(run, &local);
    run->start_ns = run->output_ns = clock_mono_ns();
    if (ok || use_up_if_oom(run) || is_crowded_out(run))
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
}

BoxRun *box_start(Box *box, const BoxCommand *command, GError **error)
{
    g_autoptr(BoxRun) run = g_new0(BoxRun, 1);
    *run = (BoxRun){.box = box,
                    .command = *command,
                    .out = {-1, -1},
                    .err = {-1, -1},
                    .in = -1,
                    .init = {-1, -1},
                    .called_ns = clock_mono_ns(),
                    .wall_ms = box->limits.wall_ms,
                    .before = cgroup_usage(box->cgroup),
                    .staged_oom_kills = box->last_oom_kills};
    box->last_oom_kills = run->before.oom_kills;
    box->n_running++;
    if (command->wall_ms > 0 && (run->wall_ms == 0 || command->wall_ms < run->wall_ms))
        run->wall_ms = command->wall_ms;
    if (command->stdin_data != NULL)
        run->stdin_data = g_bytes_new(command->stdin_data, command->stdin_len);
    run->peak_is_old = !cgroup_peak_reset(box->cgroup);
    output_init(&run->kept[0], box->limits.output_bytes_keep);
    output_init(&run->kept[1], box->limits.output_bytes_keep);
    if (start(run, error))
        return g_steal_pointer(&run);
    g_prefix_error(error, "run a command: ");
    return NULL;
}

gboolean box_run_finish(BoxRun *given, BoxResult *ret_result, GError **error)
{
    g_autoptr(BoxRun) run = given;
    g_autoptr(GError) local = NULL;
    while (!run->done) {
        GPollFD polled[BOX_RUN_FDS];
        int wait_ms;
        box_run_poll(run, polled, &wait_ms);
        if (g_poll(polled, BOX_RUN_FDS, wait_ms) < 0 && errno != EINTR)
            return error_set_errno(error, errno, "run a command: poll");
        if (box_run_step(run, &local) || use_up_if_oom(run))
            continue;
        g_propagate_prefixed_error(error, g_steal_pointer(&local), "run a command: ");
        return FALSE;
    }
    if (run->command.keep_background)
        box_stage_keep(run->box, &run->init);
    return conclude(run, ret_result, error);
}

gboolean box_exec(Box *box, const BoxCommand *command, BoxResult *ret_result, GError **error)
{
    BoxRun *run = box_start(box, command, error);
    return run != NULL && box_run_finish(run, ret_result, error);
}
