/*
 * The host of many episodes: one loop that never waits for a command.
 *
 * Invariants:
 *   1. Nothing is waited for but messages of assayd, commands, and checkouts, all at once.
 *   2. When assayd is gone, so are the host and its boxes.
 *
 * Not here: what is asked of an episode (episode_guest.c), who may ask for what (assayd).
 */
#include "env/episode_server.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/episode_file.h"
#include "env/episode_guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define LINE_MAX_BYTES (64u << 20) /* of assayd: a task row is the longest */

void episode_server_send(EpisodeServer *server, json_t *value)
{
    g_autoptr(json_t) owned = value;
    g_autofree char *text = json_print(owned), *line = g_strconcat(text, "\n", NULL);
    if (!fd_write_all(server->fd, line, strlen(line), NULL))
        server->is_over = TRUE; /* assayd is gone */
}

static gboolean server_start(EpisodeServer *server, const json_t *message, GError **error)
{
    gint64 slot, boxes;
    const char *state_dir = json_want_str(message, "state_dir", error);
    if (state_dir == NULL || !json_opt_int(message, "slot_first", 0, 4095, 0, &slot, error) ||
        !json_opt_int(message, "boxes", 1, 4095, 1, &boxes, error))
        return FALSE;
    gboolean degraded = json_is_true(json_object_get(message, "allow_degraded"));
    const EpisodeHostOptions host = {(guint)slot, (guint)boxes, degraded};
    const EpisodeStandOptions stands = {
        .state_dir = state_dir,
        .environments = json_string_value(json_object_get(message, "environments")),
        .repos = json_string_value(json_object_get(message, "repos")),
        .slot = (guint)(slot + boxes),
        .allow_degraded = degraded};
    server->dir_fd = episode_file_dir(state_dir, error);
    if (server->dir_fd < 0)
        return FALSE;
    server->host = episode_host_new(&host);
    server->stands = episode_stands_new(&stands);
    episode_server_send(server, json_pack("{s:s}", "event", "ready"));
    return TRUE;
}

static gboolean server_message(EpisodeServer *server, const char *line, gsize len, GError **error)
{
    g_autoptr(json_t) message = json_parse(line, len, error);
    const char *op = message != NULL ? json_want_str(message, "op", error) : NULL;
    if (op == NULL)
        return FALSE;
    if (g_str_equal(op, "start") && server->host == NULL)
        return server_start(server, message, error);
    const char *id = json_want_str(message, "id", error);
    if (id == NULL || server->host == NULL)
        return FALSE;
    if (g_str_equal(op, "drop")) {
        g_hash_table_remove(server->guests, id);
        return TRUE;
    }
    episode_guest_ask(server, id, g_steal_pointer(&message));
    return TRUE;
}

static gboolean server_read(EpisodeServer *server, GError **error)
{
    gsize old = server->in->len;
    g_byte_array_set_size(server->in, (guint)(old + 65536));
    ssize_t n = recv(server->fd, server->in->data + old, 65536, 0);
    g_byte_array_set_size(server->in, (guint)(old + (gsize)MAX(n, 0)));
    if (n <= 0) {
        server->is_over = n == 0 || errno != EINTR;
        return TRUE;
    }
    gsize from = 0;
    const char *newline;
    const char *data = (const char *)server->in->data;
    while ((newline = memchr(data + from, '\n', server->in->len - from)) != NULL) {
        if (!server_message(server, data + from, (gsize)(newline - data) - from, error))
            return FALSE;
        from = (gsize)(newline - data) + 1;
    }
    g_byte_array_remove_range(server->in, 0, (guint)from);
    return server->in->len <= LINE_MAX_BYTES ||
           error_set(error, ASSAY_ERROR_LIMIT, "a line of assayd is too long");
}

/* One turn: waits for assayd, for commands, for checkouts. */
static gboolean server_turn(EpisodeServer *server, GError **error)
{
    g_autoptr(GArray) polled = g_array_new(FALSE, FALSE, sizeof(GPollFD));
    int wait_ms = -1;
    const GPollFD own[] = {
        {.fd = server->fd, .events = G_IO_IN},
        {.fd = server->stands != NULL ? episode_stands_fd(server->stands) : -1, .events = G_IO_IN}};
    g_array_append_vals(polled, own, 2);
    for (guint i = 0; i < server->busy->len; i++) {
        BoxRun *run = episode_guest_running(server->busy->pdata[i]);
        GPollFD fds[BOX_RUN_FDS];
        int run_ms = -1;
        if (run == NULL)
            continue;
        box_run_poll(run, fds, &run_ms);
        g_array_append_vals(polled, fds, BOX_RUN_FDS);
        if (run_ms >= 0 && (wait_ms < 0 || run_ms < wait_ms))
            wait_ms = run_ms;
    }
    GPollFD *first = &g_array_index(polled, GPollFD, 0);
    if (g_poll(first, polled->len, wait_ms) < 0 && errno != EINTR)
        return error_set_errno(error, errno, "poll");
    if (first[1].revents != 0)
        episode_stands_hear(server->stands);
    g_autoptr(GPtrArray) busy = g_ptr_array_copy(server->busy, NULL, NULL);
    for (guint i = 0; i < busy->len; i++)
        episode_guest_wake(busy->pdata[i]);
    return first[0].revents == 0 || server_read(server, error);
}

int episode_serve(int fd)
{
    g_autoptr(GError) error = NULL;
    EpisodeServer server = {.fd = fd, .dir_fd = -1, .in = g_byte_array_new()};
    server.busy = g_ptr_array_new();
    server.guests = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, episode_guest_free);
    while (!server.is_over && server_turn(&server, &error))
        continue;
    if (error != NULL)
        g_printerr("assay-worker: %s\n", error->message);
    g_hash_table_unref(server.guests);
    g_ptr_array_unref(server.busy);
    if (server.host != NULL) {
        episode_host_free(server.host);
        episode_stands_free(server.stands);
        close(server.dir_fd);
    }
    g_byte_array_unref(server.in);
    return error != NULL ? 1 : 0;
}
