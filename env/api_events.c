/*
 * GET /v1/events: the event table as server-sent events.
 *
 * 1. A stream is a cursor into the table, not a queue: a slow reader costs nothing.
 * 2. Who resumes at an id that is pruned gets one `lagged` event with the oldest kept id.
 */
#include "env/routes.h"

#include "base/error.h"
#include "env/service.h"

#include <string.h>

#define EVENTS_PAGE      256
#define EVENTS_COMMENT_S 15
#define EVENTS_RETRY_MS  2000

typedef struct Events {
    gint64 seq;
    GStrv types; /* NULL: all */
    char *subject;
    guint timer;
    Request *req;
} Events;

static void events_free(gpointer data)
{
    Events *events = data;
    if (events->timer != 0)
        g_source_remove(events->timer);
    g_strfreev(events->types);
    g_free(events->subject);
    g_free(events);
}

static gboolean events_comment(gpointer user_data)
{
    Events *events = user_data;
    if (events->req->gone) {
        events->timer = 0;
        return G_SOURCE_REMOVE;
    }
    if (!request_stream_full(events->req))
        request_stream_write(events->req, ": ping\n\n", strlen(": ping\n\n"));
    return G_SOURCE_CONTINUE;
}

static gboolean wanted(const Events *events, const EventRow *row)
{
    if (events->types != NULL && !g_strv_contains((const char *const *)events->types, row->type))
        return FALSE;
    return events->subject == NULL || strcmp(events->subject, row->subject) == 0;
}

/* StreamPumpFn. */
static void events_pump(Request *req, gpointer user_data)
{
    Events *events = user_data;
    if (store_is_dirty(req->service->store)) {
        req->service->events_new = TRUE; /* what is not committed may yet be undone */
        return;
    }
    while (!request_stream_full(req)) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GPtrArray) rows =
            event_list(req->service->store, events->seq, EVENTS_PAGE, &error);
        if (rows == NULL) {
            g_warning("events: %s", error->message);
            request_stream_end(req);
            return;
        }
        for (guint i = 0; i < rows->len; i++) {
            const EventRow *row = g_ptr_array_index(rows, i);
            events->seq = row->seq;
            if (!wanted(events, row))
                continue;
            g_autofree char *text =
                g_strdup_printf("id: %" G_GINT64_FORMAT "\nevent: %s\ndata: %s\n\n", row->seq,
                                row->type, row->body);
            request_stream_write(req, text, strlen(text));
        }
        if (rows->len < EVENTS_PAGE)
            return;
    }
}

/* Where to begin: Last-Event-ID, ?since, else now. */
static gboolean events_from(Request *req, gint64 newest, gint64 *ret, GError **error)
{
    const char *last = request_header(req, "Last-Event-ID");
    if (last != NULL) {
        if (g_ascii_string_to_signed(last, 10, 0, G_MAXINT64, ret, NULL))
            return TRUE;
        return error_set(error, ASSAY_ERROR_INPUT, "header Last-Event-ID: must be a number");
    }
    return request_query_int(req, "since", 0, G_MAXINT64, newest, ret, error);
}

void api_events(Request *req)
{
    GError *error = NULL;
    gint64 oldest, newest, from = 0;
    if (!event_range(req->service->store, &oldest, &newest, &error) ||
        !events_from(req, newest, &from, &error)) {
        request_reply_error(req, error);
        return;
    }
    Events *events = g_new0(Events, 1);
    events->req = req;
    events->seq = from;
    events->subject = g_strdup(request_query(req, "subject"));
    const char *types = request_query(req, "types");
    if (types != NULL)
        events->types = g_strsplit(types, ",", -1);
    events->timer = g_timeout_add_seconds(EVENTS_COMMENT_S, events_comment, events);
    service_stream_add(req->service, req);
    g_autofree char *head = g_strdup_printf("retry: %d\n\n", EVENTS_RETRY_MS);
    request_stream_start(req, "text/event-stream", events_pump, events, events_free);
    request_stream_write(req, head, strlen(head));
    if (from + 1 < oldest || from > newest) {
        req->service->counters[COUNT_EVENTS_LAGGED]++;
        g_autofree char *text = g_strdup_printf("event: lagged\ndata: {\"oldest\":%" G_GINT64_FORMAT
                                                ",\"newest\":%" G_GINT64_FORMAT "}\n\n",
                                                oldest, newest);
        request_stream_write(req, text, strlen(text));
    }
}
