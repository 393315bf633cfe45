/*
 * Getting an init to talk to.
 *
 * Invariants:
 *   1. At most one init is asked for and not yet taken.
 *   2. An init that has died while it waited (memory, a fault of ours) is replaced once, so that
 *      what one command did costs the next nothing.
 *   3. The first command of a box asks for one; from the second on, the next is staged while a
 *      command runs, so that a box used once pays for one.
 *
 * Not here: what is said to it (box_run.c).
 */
#include "sandbox/box_stage.h"

#include "base/error.h"

#include <unistd.h>

void box_init_clear(BoxInit *init)
{
    if (init->sock >= 0)
        close(init->sock); /* it sees the end, and ends with all that it holds */
    if (init->pidfd >= 0)
        close(init->pidfd);
    *init = (BoxInit){-1, -1};
}

static gboolean is_alive(const BoxInit *init)
{
    GPollFD polled = {.fd = init->pidfd, .events = G_IO_IN};
    return init->pidfd >= 0 && g_poll(&polled, 1, 0) == 0;
}

gboolean box_init_send(BoxInit *init, GByteArray *bytes, const int *fds, guint n_fds,
                       GError **error)
{
    SpecReply reply;
    g_autoptr(GError) local = NULL;
    GPollFD polled = {.fd = init->sock, .events = G_IO_IN};
    if (launch_send(init->sock, bytes, fds, n_fds, &local))
        return TRUE;
    if (g_poll(&polled, 1, 0) > 0 && !launch_receive(init->sock, &reply, NULL, 0, error))
        return FALSE; /* it said why before it died */
    g_clear_error(error);
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
}

static gboolean send_order(int sock, SpecOrder order, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    spec_put_order(&writer, order);
    return launch_send(sock, bytes, NULL, 0, error);
}

gboolean box_init_order(BoxInit *init, SpecOrder order, GError **error)
{
    return send_order(init->sock, order, error);
}

gboolean box_stage_ask(Box *box, GError **error)
{
    if (box->is_staging)
        return TRUE;
    if (!send_order(box->sock, SPEC_ORDER_STAGE, error))
        return FALSE;
    box->is_staging = TRUE;
    return TRUE;
}

static gboolean receive_init(Box *box, BoxInit *ret_init, GError **error)
{
    SpecReply reply;
    int fds[2];
    box->is_staging = FALSE;
    if (!launch_receive(box->sock, &reply, fds, 2, error))
        return FALSE;
    *ret_init = (BoxInit){fds[0], fds[1]};
    if (reply.kind == SPEC_REPLY_READY && fds[0] >= 0 && fds[1] >= 0)
        return TRUE;
    box_init_clear(ret_init);
    return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
}

/* What was staged ahead may have failed for lack of processes or memory that were in use then. */
static gboolean take_staged(Box *box, BoxInit *ret_init, GError **error)
{
    if (box->is_staging) {
        if (receive_init(box, ret_init, NULL) && is_alive(ret_init))
            return TRUE;
        box_init_clear(ret_init);
    }
    return box_stage_ask(box, error) && receive_init(box, ret_init, error);
}

gboolean box_stage_take(Box *box, gboolean keep, BoxInit *ret_init, GError **error)
{
    *ret_init = (BoxInit){-1, -1};
    if (keep && is_alive(&box->session)) {
        *ret_init = box->session;
        box->session = (BoxInit){-1, -1};
        return TRUE;
    }
    if (!take_staged(box, ret_init, error))
        return FALSE;
    if (box->n_taken++ == 0 || keep)
        return TRUE;
    return box_stage_ask(box, error);
}

void box_stage_keep(Box *box, BoxInit *init)
{
    box_init_clear(&box->session);
    box->session = *init;
    *init = (BoxInit){-1, -1};
}

void box_stage_next_box(const Box *box)
{
    send_order(box->starter->sock, SPEC_ORDER_STAGE, NULL);
}

gboolean box_stage_has_session(const Box *box)
{
    return is_alive(&box->session);
}

void box_stage_drop_staged(Box *box)
{
    BoxInit staged = {-1, -1};
    if (box->is_staging)
        receive_init(box, &staged, NULL);
    box_init_clear(&staged);
}

void box_stage_drop(Box *box)
{
    box_init_clear(&box->session);
    box_stage_drop_staged(box);
}
