/*
 * Running one command in an open box: pump, limits, accounting, verdict how it ended.
 *
 * Invariants:
 *   1. Only our own failures are errors. Whatever the command does, including killing everything
 *      it can reach, ends in an outcome.
 *   2. When box_exec returns TRUE the keeper has said DONE: no process of the command lives.
 *   3. Memory is bounded by output_bytes_keep, whatever is written.
 *   4. When several causes hold, the first of: cancelled, output, oom, cpu, wall, idle, signal.
 *
 * Not here: what happens inside (keeper*.c).
 */
#include "sandbox/box_degraded.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "sandbox/kernel.h"
#include "sandbox/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

#define PIPE_BYTES   (1 << 20)
#define TICK_MS      100   /* how often CPU time and oom kills are looked at */
#define KILL_SOFT_MS 5000  /* what an init that was asked is given */
#define KILL_WAIT_MS 20000 /* from SIGKILL to DONE; more means a stuck host */
#define CHUNK_BYTES  65536

typedef struct Run {
    Box *box;
    const BoxCommand *command;
    int out[2], err[2], in; /* out/err: read ends, then write ends until sent */
    int init_pidfd;
    gsize stdin_done;
    gboolean stdin_ended;
    gboolean is_raw;      /* our own terminal was switched */
    gboolean is_terminal; /* out[0] is the master of the box's terminal */
    struct termios saved; /* of our own terminal, while it is raw */
    Output kept[2];
    gint64 start_ns, output_ns, killed_ns;
    guint64 wall_ms;
    BoxOutcome cause; /* why we killed it; NONE while we have not */
    CgroupUsage before;
    gboolean done;
    SpecReply reply;
} Run;

static void run_clear(Run *run)
{
    if (run->is_raw)
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &run->saved);
    const int fds[] = {run->out[0], run->out[1], run->err[0],
                       run->err[1], run->in,     run->init_pidfd};
    for (gsize i = 0; i < G_N_ELEMENTS(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    for (int i = 0; i < 2; i++) {
        g_clear_pointer(&run->kept[i].head, g_byte_array_unref);
        g_clear_pointer(&run->kept[i].tail, g_byte_array_unref);
    }
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, run_clear)

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

/* A command's words as the box has them: translated in the degraded mode, else as they are. */
static char **words(const Box *box, const BoxCommand *command)
{
    char **list = g_strdupv((char **)(gsize)command->argv);
    for (char **word = list; *word != NULL; word++) {
        char *inside = box_path_inside(box, *word);
        for (gsize i = 0; box->copy_dir != NULL && i < command->n_files; i++)
            if (g_str_equal(command->files[i].path, *word)) {
                g_autofree char *file = box_degraded_file_path(box, *word);
                g_free(inside);
                inside = g_strconcat(box->copy_dir, file, NULL);
            }
        g_free(*word);
        *word = inside;
    }
    return list;
}

static gboolean put_files(const Run *run, GByteArray *bytes, SpecWriter *writer, GError **error)
{
    const BoxCommand *command = run->command;
    for (gsize i = 0; i < command->n_files; i++) {
        const BoxFile *file = &command->files[i];
        if (!spec_path_ok(file->path) || file->path[1] == '\0')
            return error_set(error, ASSAY_ERROR_INPUT, "file %s is not an absolute, normal path",
                             file->path);
        if (file->len > SPEC_BYTES_MAX || bytes->len > SPEC_BYTES_MAX - file->len)
            return error_set(error, ASSAY_ERROR_LIMIT, "the files are larger than %u bytes",
                             SPEC_BYTES_MAX);
        g_autofree char *moved =
            run->box->copy_dir != NULL ? box_degraded_file_path(run->box, file->path) : NULL;
        SpecFile put = {moved != NULL ? moved : file->path, file->data, (guint32)file->len,
                        file->mode & 0777};
        spec_put_file(writer, &put);
    }
    return TRUE;
}

static gboolean encode(const Run *run, GByteArray *bytes, GError **error)
{
    const BoxCommand *command = run->command;
    if (command->n_files > SPEC_FILES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "more than %u files", SPEC_FILES_MAX);
    const char *const *given =
        command->envp != NULL ? command->envp : box_envp_default(run->box->uid);
    g_auto(GStrv) argv = words(run->box, command);
    g_auto(GStrv) envp = run->box->copy_dir != NULL ? box_degraded_envp(run->box, given)
                                                    : g_strdupv((char **)(gsize)given);
    g_autofree char *cwd =
        box_path_inside(run->box, command->cwd != NULL ? command->cwd : run->box->work_path);
    struct winsize size = {0};
    if (command->interactive)
        (void)ioctl(STDIN_FILENO, TIOCGWINSZ, &size); /* zero when we have no terminal */
    SpecExec exec = {
        .flags = command->interactive ? SPEC_EXEC_PTY : 0,
        .rows = size.ws_row,
        .cols = size.ws_col,
        .n_argv = g_strv_length(argv),
        .n_envp = g_strv_length(envp),
        .n_files = (guint32)command->n_files,
        .cwd = cwd,
    };
    if (exec.n_argv == 0 || exec.n_argv > SPEC_ARGV_MAX || exec.n_envp > SPEC_ENVP_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "too many or no arguments");
    if (!spec_path_ok(exec.cwd))
        return error_set(error, ASSAY_ERROR_INPUT, "cwd %s is not an absolute, normal path",
                         exec.cwd);

    SpecWriter writer = launch_writer(bytes);
    spec_put_exec(&writer, &exec);
    for (guint i = 0; i < exec.n_argv; i++)
        spec_put_str(&writer, argv[i]);
    for (guint i = 0; i < exec.n_envp; i++)
        spec_put_str(&writer, envp[i]);
    return put_files(run, bytes, &writer, error);
}

static gboolean started(Run *run, GError **error)
{
    SpecReply reply;
    int fds[2];
    if (!launch_receive(run->box->sock, &reply, fds, 2, error))
        return FALSE;
    run->init_pidfd = fds[0];
    if (run->is_terminal)
        run->out[0] = fds[1];
    else if (fds[1] >= 0)
        close(fds[1]);
    if (reply.kind != SPEC_REPLY_STARTED || run->init_pidfd < 0 || run->out[0] < 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    return non_blocking(run->out[0], error) &&
           (run->err[0] < 0 || non_blocking(run->err[0], error));
}

/* Our terminal hands every key to the box's own one; without a terminal nothing is switched. */
static gboolean start_terminal(Run *run, GByteArray *request, GError **error)
{
    run->is_terminal = TRUE;
    if (!launch_send(run->box->sock, request, NULL, 0, error) || !started(run, error))
        return FALSE;
    if (tcgetattr(STDIN_FILENO, &run->saved) == 0) {
        struct termios raw = run->saved;
        cfmakeraw(&raw);
        run->is_raw = tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw) == 0;
    }
    return TRUE;
}

static gboolean start(Run *run, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    int in[2] = {-1, -1};
    if (!encode(run, bytes, error))
        return FALSE;
    if (run->command->interactive)
        return start_terminal(run, bytes, error);
    if (!make_pipe(run->out, error) || (!run->command->merge && !make_pipe(run->err, error)))
        return FALSE;
    AUTO_FD null = -1;
    AUTO_FD stdin_end = -1;
    if (run->command->stdin_data != NULL) {
        if (!make_pipe(in, error))
            return FALSE;
        stdin_end = in[0];
        run->in = in[1];
        if (!non_blocking(run->in, error))
            return FALSE;
    } else {
        null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null < 0)
            return error_set_errno(error, errno, "open /dev/null");
    }
    const int fds[] = {stdin_end >= 0 ? stdin_end : null, run->out[1],
                       run->command->merge ? run->out[1] : run->err[1]};
    if (!launch_send(run->box->sock, bytes, fds, G_N_ELEMENTS(fds), error))
        return FALSE;
    close_fd(&run->out[1]);
    close_fd(&run->err[1]);
    return started(run, error);
}

/* Where init itself kills and counts, it is asked to; elsewhere the kernel does both. */
static gboolean init_watches(const Box *box)
{
    return box->copy_dir != NULL || box->is_sampled;
}

/* Ends the command: everything in its pid namespace dies with init. */
static void end(Run *run, BoxOutcome cause)
{
    if (run->cause != BOX_NONE)
        return;
    run->cause = cause;
    run->killed_ns = clock_mono_ns();
    kernel_pidfd_kill(run->init_pidfd, init_watches(run->box) ? SIGTERM : SIGKILL);
}

/* Init was asked and could not: the box may be lost with it. */
static void end_hard(const Run *run)
{
    kernel_pidfd_kill(run->init_pidfd, SIGKILL);
    if (run->box->copy_dir != NULL)
        cgroup_kill(run->box->cgroup);
}

static void copy_to_tee(const Run *run, const char *data, gsize len)
{
    int fd = run->is_terminal ? STDOUT_FILENO : run->command->tee_fd;
    if (fd > 0)
        fd_write_all(fd, data, len, NULL); /* a lost log line is not our end */
}

/* Reads what is there; closes at the end of the stream. */
static void drain(Run *run, int *fd, Output *kept)
{
    char chunk[CHUNK_BYTES];
    while (*fd >= 0) {
        ssize_t n = read(*fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            close_fd(fd);
            return;
        }
        run->output_ns = clock_mono_ns();
        output_add(kept, chunk, (gsize)n);
        copy_to_tee(run, chunk, (gsize)n);
        guint64 most = run->box->limits.output_bytes_kill;
        if (most > 0 && run->kept[0].total + run->kept[1].total > most)
            end(run, BOX_OUTPUT_LIMIT);
        if (run->cause != BOX_NONE && !run->done)
            return; /* a flood must not keep us from looking at the clock */
    }
}

static void feed(Run *run)
{
    const char *data = run->command->stdin_data;
    gsize left = run->command->stdin_len - run->stdin_done;
    ssize_t n = left > 0 ? write(run->in, data + run->stdin_done, left) : 0;
    if (n > 0)
        run->stdin_done += (gsize)n;
    if (run->stdin_done == run->command->stdin_len || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(&run->in);
}

/* Keys from our terminal to the box's; the end of our input is passed on as ^D. */
static void feed_terminal(Run *run)
{
    char keys[4096];
    ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    if (n > 0)
        (void)!write(run->out[0], keys, (gsize)n);
    else if (n == 0 && !run->stdin_ended)
        (void)!write(run->out[0], "\x04", 1);
    if (n == 0)
        run->stdin_ended = TRUE;
}

static gint64 ms_since(gint64 then_ns)
{
    return (clock_mono_ns() - then_ns) / 1000000;
}

static void check_limits(Run *run)
{
    const BoxLimits *limits = &run->box->limits;
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
static int next_wait_ms(const Run *run)
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

static gboolean take_done(Run *run, GError **error)
{
    if (!launch_receive(run->box->sock, &run->reply, NULL, 0, error))
        return FALSE;
    if (run->reply.kind != SPEC_REPLY_DONE)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    run->done = TRUE;
    return TRUE;
}

static gboolean pump(Run *run, GError **error)
{
    while (!run->done) {
        struct pollfd polled[] = {
            {.fd = run->box->sock, .events = POLLIN},
            {.fd = run->out[0], .events = POLLIN},
            {.fd = run->err[0], .events = POLLIN},
            {.fd = run->in, .events = POLLOUT},
            {.fd = run->command->cancel_fd > 0 ? run->command->cancel_fd : -1, .events = POLLIN},
            {.fd = run->is_terminal && !run->stdin_ended ? STDIN_FILENO : -1, .events = POLLIN}};
        if (poll(polled, G_N_ELEMENTS(polled), next_wait_ms(run)) < 0 && errno != EINTR)
            return error_set_errno(error, errno, "poll");
        if (polled[1].revents != 0)
            drain(run, &run->out[0], &run->kept[0]);
        if (polled[2].revents != 0)
            drain(run, &run->err[0], &run->kept[1]);
        if (polled[3].revents != 0)
            feed(run);
        if (polled[4].revents != 0)
            end(run, BOX_CANCELLED);
        if (polled[5].revents != 0)
            feed_terminal(run);
        if (polled[0].revents != 0 && !take_done(run, error))
            return FALSE;
        if (!run->done)
            check_limits(run);
        if (run->cause != BOX_NONE && !run->done && ms_since(run->killed_ns) > KILL_SOFT_MS)
            end_hard(run);
        if (run->cause != BOX_NONE && !run->done && ms_since(run->killed_ns) > KILL_WAIT_MS)
            return error_set(error, ASSAY_ERROR_SYSTEM, "processes did not die within %d ms",
                             KILL_WAIT_MS);
    }
    /* Every writer is dead: what is left in the pipes is all there will be. */
    drain(run, &run->out[0], &run->kept[0]);
    drain(run, &run->err[0], &run->kept[1]);
    return TRUE;
}

static void judge(const Run *run, BoxResult *result)
{
    const SpecReply *reply = &run->reply;
    if (run->box->is_used_up) {
        result->outcome = BOX_OUT_OF_MEMORY;
        return;
    }
    if (reply->has_status && reply->start_failed) {
        result->outcome = BOX_START_ERROR;
        result->start_errno = reply->err;
    } else if (reply->has_status && WIFEXITED(reply->wait_status)) {
        result->outcome = BOX_EXITED;
        result->exit_code = WEXITSTATUS(reply->wait_status);
    } else {
        result->outcome = BOX_SIGNALED;
        result->signal = reply->has_status ? WTERMSIG(reply->wait_status) : SIGKILL;
    }
    if (run->cause != BOX_NONE)
        result->outcome = run->cause;
    gboolean hard = run->cause == BOX_CANCELLED || run->cause == BOX_OUTPUT_LIMIT;
    if (!hard && (result->oom_kills > 0 || reply->sampled_oom))
        result->outcome = BOX_OUT_OF_MEMORY;
    else if (!hard && reply->sampled_cpu)
        result->outcome = BOX_CPU_LIMIT;
    else if (result->outcome == BOX_SIGNALED && result->signal == SIGXCPU &&
             run->box->limits.cpu_ms > 0)
        result->outcome = BOX_CPU_LIMIT;
}

static void account(const Run *run, BoxResult *result)
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
    result->oom_kills = (guint32)(now.oom_kills - run->before.oom_kills);
    result->pids_peak = (guint32)now.pids_peak;
    result->leftover_procs = run->reply.leftover;
}

/* Init died without a word and nobody we know of did it. The command cannot kill its init, so this
 * is our machine's doing; blaming the command would make it a verdict. */
static gboolean init_was_lost(const Run *run, const BoxResult *result)
{
    return !run->box->is_used_up && !run->reply.has_status && run->cause == BOX_NONE &&
           result->oom_kills == 0 && !run->reply.sampled_oom;
}

static gboolean conclude(Run *run, gint64 called_ns, gint64 ended_ns, BoxResult *ret_result,
                         GError **error)
{
    BoxResult result = {0};
    account(run, &result);
    if (init_was_lost(run, &result))
        return error_set(error, ASSAY_ERROR_SYSTEM, "the box's init was killed from outside");
    judge(run, &result);
    result.out_bytes = run->kept[0].total;
    result.err_bytes = run->kept[1].total;
    result.out = output_finish(&run->kept[0], &result.truncated);
    result.err = output_finish(&run->kept[1], &result.truncated);
    result.setup_us = (guint64)(run->start_ns - called_ns) / 1000;
    result.wall_us = (guint64)(ended_ns - run->start_ns) / 1000;
    result.teardown_us = (guint64)(clock_mono_ns() - ended_ns) / 1000;
    box_result_clear(ret_result);
    *ret_result = result;
    return TRUE;
}

/* The keeper shares the memory limit; a command may leave so much on tmpfs that the keeper is
 * killed for it. That is the command's doing, not a failure of ours. */
static gboolean is_oom_of_keeper(const Run *run)
{
    return cgroup_usage(run->box->cgroup).oom_kills > run->before.oom_kills;
}

static gboolean perform(Run *run, GError **error)
{
    g_autoptr(GError) local = NULL;
    gboolean ok = start(run, &local);
    run->start_ns = run->output_ns = clock_mono_ns();
    if (ok && pump(run, &local))
        return TRUE;
    if (is_oom_of_keeper(run)) {
        run->box->is_used_up = TRUE;
        return TRUE;
    }
    g_propagate_prefixed_error(error, g_steal_pointer(&local), "run a command: ");
    return FALSE;
}

gboolean box_exec(Box *box, const BoxCommand *command, BoxResult *ret_result, GError **error)
{
    gint64 called_ns = clock_mono_ns();
    g_auto(Run) run = {.box = box,
                       .command = command,
                       .out = {-1, -1},
                       .err = {-1, -1},
                       .in = -1,
                       .init_pidfd = -1,
                       .wall_ms = box->limits.wall_ms,
                       .before = cgroup_usage(box->cgroup)};
    if (command->wall_ms > 0 && (run.wall_ms == 0 || command->wall_ms < run.wall_ms))
        run.wall_ms = command->wall_ms;
    cgroup_peak_reset(box->cgroup);
    output_init(&run.kept[0], box->limits.output_bytes_keep);
    output_init(&run.kept[1], box->limits.output_bytes_keep);

    run.start_ns = run.output_ns = called_ns;
    if (!box->is_used_up && !perform(&run, error))
        return FALSE;
    return conclude(&run, called_ns, clock_mono_ns(), ret_result, error);
}
