/*
 * Connections of the egress proxy: a head within a time, one judgement, then bytes both ways.
 *
 * One request per connection. A name is resolved once, all its addresses are judged, and only
 * those addresses are connected to: a second answer of a rebinding server is never asked for.
 *
 * Invariants:
 *   1. Nothing is resolved before a rule has allowed the name, nothing connected before every
 *      address was judged.
 *   2. Threads, memory per thread, time without progress, bytes and log lines have named limits.
 *   3. Of a plain request exactly its head and its declared body are passed on.
 *   4. Every accepted connection that sent a byte gives one log line, up to EGRESS_LINES_MAX.
 *
 * Not here: what is allowed (egress_rules.c), the process and its privileges (egress_main.c).
 */
#include "sandbox/egress_proxy.h"

#include "base/fd.h"
#include "base/id.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define FLOW_BYTES 16384

typedef struct Connection {
    const EgressConfig *config;
    int client, server;
    char head[EGRESS_HEAD_MAX];
    gsize head_len, got; /* of the head; and what was read, which may be more */
    EgressRequest request;
    char address[NI_MAXHOST];
    guint64 sent, received;
} Connection;

/* One direction. */
typedef struct Flow {
    int from, to;
    guint64 left; /* bytes still to be read */
    char bytes[FLOW_BYTES];
    gsize at, len;
    gboolean ended;     /* nothing more is read */
    gboolean is_closed; /* and all of it was written */
    gboolean may_shut;  /* the end is passed on */
    guint64 *count;
} Flow;

static gint n_connections; /* atomic */
static gint n_lines;       /* atomic */
static guint64 n_bytes;    /* under the lock */
static GMutex bytes_lock, line_lock;

static gboolean wait_for(int fd, short events, gint64 until_ns)
{
    for (;;) {
        gint64 left_ms = (until_ns - clock_mono_ns()) / 1000000;
        struct pollfd polled = {.fd = fd, .events = events};
        int n = left_ms <= 0 ? 0 : poll(&polled, 1, (int)left_ms);
        if (n >= 0 || errno != EINTR)
            return n > 0;
    }
}

static gint64 in_ms(guint ms)
{
    return clock_mono_ns() + (gint64)ms * 1000000;
}

/* Reads until the empty line. What follows it stays behind it in the buffer. */
static EgressVerdict read_head(Connection *c)
{
    gint64 until = in_ms(c->config->head_ms);
    for (;;) {
        if (c->got == sizeof c->head)
            return EGRESS_TOO_LARGE;
        if (!wait_for(c->client, POLLIN, until))
            return EGRESS_SLOW;
        ssize_t n = read(c->client, c->head + c->got, sizeof c->head - c->got);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return EGRESS_MALFORMED;
        gsize from = c->got > 3 ? c->got - 3 : 0;
        c->got += (gsize)n;
        const char *end = memmem(c->head + from, c->got - from, "\r\n\r\n", 4);
        if (end != NULL) {
            c->head_len = (gsize)(end - c->head) + 4;
            return EGRESS_OK;
        }
    }
}

/* Appends a numeric address to a list that getaddrinfo could have made. */
static struct addrinfo *resolve_one(const char *address, const char *port, int flags)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct addrinfo *list = NULL;
    return getaddrinfo(address, port, &hints, &list) == 0 ? list : NULL;
}

/* The lists of addresses of the name: one from DNS, or one per row of the tests' table. */
static GPtrArray *resolve(const Connection *c)
{
    GPtrArray *lists = g_ptr_array_new_with_free_func((GDestroyNotify)freeaddrinfo);
    g_autofree char *port = g_strdup_printf("%u", c->request.port);
    const GStrv table = c->config->unsafe_hosts;
    gsize len = strlen(c->request.host);
    struct addrinfo *list =
        table == NULL ? resolve_one(c->request.host, port, AI_ADDRCONFIG | AI_NUMERICSERV) : NULL;
    if (list != NULL)
        g_ptr_array_add(lists, list);
    for (gsize i = 0; table != NULL && table[i] != NULL; i++)
        if (strncmp(table[i], c->request.host, len) == 0 && table[i][len] == '=' &&
            (list = resolve_one(table[i] + len + 1, port, AI_NUMERICHOST | AI_NUMERICSERV)) != NULL)
            g_ptr_array_add(lists, list);
    return lists;
}

static int connect_one(const struct addrinfo *to, gint64 until)
{
    AUTO_FD fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int err = 0;
    socklen_t size = sizeof err;
    if (fd < 0)
        return -1;
    if (connect(fd, to->ai_addr, to->ai_addrlen) < 0 &&
        (errno != EINPROGRESS || !wait_for(fd, POLLOUT, until) ||
         getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) < 0 || err != 0))
        return -1;
    return fd_take(&fd);
}

/* Resolves, judges every address, then connects to the first that answers. */
static EgressVerdict reach(Connection *c)
{
    gint64 until = in_ms(EGRESS_CONNECT_MS);
    g_autoptr(GPtrArray) lists = resolve(c);
    if (lists->len == 0)
        return EGRESS_UNRESOLVED;
    for (guint i = 0; i < lists->len; i++)
        for (const struct addrinfo *at = lists->pdata[i]; at != NULL; at = at->ai_next)
            if (!egress_address_ok(at->ai_addr, c->config->unsafe_loopback))
                return EGRESS_PRIVATE;
    for (guint i = 0; i < lists->len; i++)
        for (const struct addrinfo *at = lists->pdata[i]; at != NULL; at = at->ai_next) {
            c->server = connect_one(at, until);
            if (c->server < 0)
                continue;
            getnameinfo(at->ai_addr, at->ai_addrlen, c->address, sizeof c->address, NULL, 0,
                        NI_NUMERICHOST);
            return EGRESS_OK;
        }
    return EGRESS_UNREACHABLE;
}

/* Takes N bytes off what the box may still move. */
static gboolean take_bytes(const EgressConfig *config, gsize n)
{
    g_mutex_lock(&bytes_lock);
    n_bytes += n;
    gboolean ok = config->bytes_max == 0 || n_bytes <= config->bytes_max;
    g_mutex_unlock(&bytes_lock);
    return ok;
}

/* FALSE: the byte limit is reached. */
static gboolean flow_read(Flow *flow, const EgressConfig *config)
{
    gsize most = (gsize)MIN(flow->left, (guint64)FLOW_BYTES);
    ssize_t n = read(flow->from, flow->bytes, most);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return TRUE;
    flow->at = 0;
    flow->len = n > 0 ? (gsize)n : 0;
    flow->left -= flow->len;
    flow->ended = n <= 0 || flow->left == 0;
    *flow->count += flow->len;
    return take_bytes(config, flow->len);
}

/* FALSE: the other end is gone. */
static gboolean flow_write(Flow *flow)
{
    ssize_t n = send(flow->to, flow->bytes + flow->at, flow->len, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    flow->at += (gsize)n;
    flow->len -= (gsize)n;
    return TRUE;
}

static void flow_close_if_done(Flow *flow)
{
    if (!flow->ended || flow->len > 0 || flow->is_closed)
        return;
    flow->is_closed = TRUE;
    if (flow->may_shut)
        shutdown(flow->to, SHUT_WR);
}

/* Moves bytes until both directions have ended, or nothing moved for the idle time. */
static EgressVerdict relay(Connection *c, Flow flows[2])
{
    for (;;) {
        struct pollfd polled[2] = {{.fd = c->client}, {.fd = c->server}};
        for (int i = 0; i < 2; i++) {
            flow_close_if_done(&flows[i]);
            polled[i].events |= flows[i].len == 0 && !flows[i].ended ? POLLIN : 0;
            polled[!i].events |= flows[i].len > 0 ? POLLOUT : 0;
        }
        if (flows[1].is_closed || (flows[0].is_closed && flows[1].is_closed))
            return EGRESS_OK; /* what a server has closed, nobody answers */
        for (int i = 0; i < 2; i++)
            if (polled[i].events == 0)
                polled[i].fd = -1;
        int n = poll(polled, 2, (int)c->config->idle_ms);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return EGRESS_OK;
        for (int i = 0; i < 2; i++) {
            if (polled[!i].revents & (POLLOUT | POLLERR) && flows[i].len > 0 &&
                !flow_write(&flows[i]))
                return EGRESS_OK;
            if (polled[i].revents & (POLLIN | POLLHUP | POLLERR) && flows[i].len == 0 &&
                !flows[i].ended && !flow_read(&flows[i], c->config))
                return EGRESS_BYTES;
        }
    }
}

static void say(int fd, const char *text)
{
    (void)send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT); /* or the client is gone */
}

static void refuse(int client, EgressVerdict verdict)
{
    static const struct {
        EgressVerdict verdict;
        const char *status;
    } rows[] = {
        {EGRESS_MALFORMED, "400 Bad Request"},    {EGRESS_TOO_LARGE, "431 Header Too Large"},
        {EGRESS_SLOW, "408 Request Timeout"},     {EGRESS_LENGTH_REQUIRED, "411 Length Required"},
        {EGRESS_UNRESOLVED, "502 Bad Gateway"},   {EGRESS_UNREACHABLE, "504 Gateway Timeout"},
        {EGRESS_BUSY, "503 Service Unavailable"},
    };
    const char *status = "403 Forbidden";
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].verdict == verdict)
            status = rows[i].status;
    g_autofree char *text = g_strdup_printf(
        "HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\negress: %s\n", status,
        egress_verdict_str(verdict));
    say(client, text);
}

static void write_line(const Connection *c, EgressVerdict verdict, gint64 began_ns)
{
    if (c->config->log_fd < 0 || c->got == 0 ||
        g_atomic_int_add(&n_lines, 1) >= (gint)EGRESS_LINES_MAX)
        return;
    g_autoptr(json_t) line =
        json_pack("{s:I, s:s, s:s, s:s, s:i, s:s, s:I, s:I, s:I}", "at_ms",
                  (json_int_t)clock_wall_ms(), "verdict", egress_verdict_str(verdict), "method",
                  g_str_is_ascii(c->request.method) ? c->request.method : "?", "host",
                  c->request.host, "port", (int)c->request.port, "address", c->address, "sent",
                  (json_int_t)c->sent, "received", (json_int_t)c->received, "wall_us",
                  (json_int_t)((clock_mono_ns() - began_ns) / 1000));
    g_autofree char *text = json_print(line);
    g_autofree char *whole = g_strconcat(text, "\n", NULL);
    g_mutex_lock(&line_lock);
    fd_write_all(c->config->log_fd, whole, strlen(whole), NULL);
    g_mutex_unlock(&line_lock);
}

/* The client's bytes behind the head, then both directions. */
static EgressVerdict converse(Connection *c)
{
    g_autofree Flow *flows = g_new0(Flow, 2);
    EgressRequest *request = &c->request;
    gsize more = c->got - c->head_len;
    if (!request->is_tunnel) {
        more = (gsize)MIN((guint64)more, request->body_bytes);
        request->body_bytes -= more;
    }
    flows[0] = (Flow){.from = c->client, .to = c->server, .count = &c->sent};
    flows[1] = (Flow){.from = c->server, .to = c->client, .count = &c->received};
    flows[0].left = request->is_tunnel ? G_MAXUINT64 : request->body_bytes;
    flows[1].left = G_MAXUINT64;
    flows[0].ended = flows[0].left == 0;
    flows[0].may_shut = request->is_tunnel;
    flows[1].may_shut = TRUE;
    if (request->is_tunnel)
        say(c->client, "HTTP/1.1 200 Connection established\r\n\r\n");
    else if (!fd_write_all(c->server, request->head, strlen(request->head), NULL))
        return EGRESS_UNREACHABLE;
    memcpy(flows[0].bytes, c->head + c->head_len, more);
    flows[0].len = more;
    c->sent += more;
    return take_bytes(c->config, more) ? relay(c, flows) : EGRESS_BYTES;
}

static void *serve(void *data)
{
    Connection *c = data;
    gint64 began_ns = clock_mono_ns();
    EgressVerdict verdict = read_head(c);
    if (verdict == EGRESS_OK)
        verdict = egress_request_parse(c->head, c->head_len, &c->request);
    if (verdict == EGRESS_OK)
        verdict = egress_rules_judge(c->config->rules, c->request.host, c->request.port);
    if (verdict == EGRESS_OK)
        verdict = reach(c);
    if (verdict == EGRESS_OK)
        verdict = converse(c);
    else
        refuse(c->client, verdict);
    write_line(c, verdict, began_ns);
    fd_close_p(&c->server);
    fd_close_p(&c->client);
    g_free(c->request.head);
    g_free(c);
    g_atomic_int_add(&n_connections, -1);
    return NULL;
}

static void begin(const EgressConfig *config, int client)
{
    if (g_atomic_int_get(&n_connections) >= (gint)EGRESS_CONNECTIONS_MAX) {
        refuse(client, EGRESS_BUSY);
        close(client);
        return;
    }
    Connection *c = g_new0(Connection, 1);
    c->config = config;
    c->client = client;
    c->server = -1;
    g_atomic_int_inc(&n_connections);
    g_autoptr(GThread) thread = g_thread_try_new("egress", serve, c, NULL);
    if (thread != NULL)
        return;
    g_atomic_int_add(&n_connections, -1);
    close(client);
    g_free(c);
}

void egress_serve(const EgressConfig *config, int listener, int control)
{
    struct pollfd polled[2] = {{.fd = listener, .events = POLLIN},
                               {.fd = control, .events = POLLIN}};
    while (polled[1].revents == 0) {
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return;
        if (polled[0].revents & (POLLERR | POLLHUP | POLLNVAL))
            return;
        int client = polled[0].revents & POLLIN
                         ? accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
                         : -1;
        if (client >= 0)
            begin(config, client);
    }
}
