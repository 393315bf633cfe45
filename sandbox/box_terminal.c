/*
 * A command on our own terminal.
 *
 * Invariants:
 *   1. Our terminal is raw only while the command runs, and only where stdin is one.
 *   2. The box has a terminal of its own: keys and output are copied, nothing is shared (TIOCSTI).
 *
 * Not here: the box's end (keeper_init.c).
 */
#include "sandbox/box_private.h"

#include "base/error.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

typedef struct Raw {
    gboolean is_raw;
    struct termios saved;
} Raw;

static void raw_clear(Raw *raw)
{
    if (raw->is_raw)
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw->saved);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Raw, raw_clear)

static void go_raw(Raw *raw)
{
    if (tcgetattr(STDIN_FILENO, &raw->saved) < 0)
        return;
    struct termios now = raw->saved;
    cfmakeraw(&now);
    raw->is_raw = tcsetattr(STDIN_FILENO, TCSAFLUSH, &now) == 0;
}

/* Keys to the box; the end of our input becomes the end of its own. FALSE: no more will come. */
static gboolean pass_keys(BoxRun *run)
{
    char keys[4096];
    ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return TRUE;
    if (n > 0)
        return box_run_write(run, keys, (gsize)n, NULL);
    box_run_end_input(run);
    return FALSE;
}

static gboolean pump(BoxRun *run, GError **error)
{
    gboolean has_keys = TRUE;
    while (!box_run_is_done(run)) {
        GPollFD polled[BOX_RUN_FDS + 1];
        int wait_ms;
        box_run_poll(run, polled, &wait_ms);
        polled[BOX_RUN_FDS] = (GPollFD){.fd = has_keys ? STDIN_FILENO : -1, .events = G_IO_IN};
        if (g_poll(polled, BOX_RUN_FDS + 1, wait_ms) < 0 && errno != EINTR)
            return error_set_errno(error, errno, "poll");
        if (polled[BOX_RUN_FDS].revents != 0)
            has_keys = pass_keys(run);
        if (!box_run_step(run, error))
            return FALSE;
    }
    return TRUE;
}

gboolean box_exec_terminal(Box *box, const BoxCommand *command, BoxResult *ret_result,
                           GError **error)
{
    struct winsize size = {0};
    BoxCommand own = *command;
    own.terminal = TRUE;
    own.tee_fd = STDOUT_FILENO;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
        own.rows = size.ws_row;
        own.cols = size.ws_col;
    }
    BoxRun *run = box_start(box, &own, error);
    if (run == NULL)
        return FALSE;
    g_auto(Raw) raw = {0};
    go_raw(&raw);
    gboolean ok = pump(run, error);
    return box_run_finish(run, ret_result, ok ? error : NULL) && ok;
}
