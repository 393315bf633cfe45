/*
 * The egress proxy's judgement: allow rules, addresses, request heads. No sockets here.
 *
 * Invariants:
 *   1. A name is letters, digits, "-" and "_" in labels, and its last label is not a number, so
 *      that no resolver takes it for an address ("2130706433", "0x7f.1" and "127.1" are such).
 *   2. Whatever is not understood is malformed: no second guess of where a line or a body ends.
 *   3. A server is sent the name that was judged as Host, whatever the client's Host said.
 *   4. An address that embeds another (mapped, 6to4, NAT64) is not public.
 *
 * Not here: connections, time and byte limits (egress_proxy.c).
 */
#include "sandbox/egress_rules.h"

#include "base/error.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#define METHODS "GET", "HEAD", "POST"

typedef struct Rule {
    char *host; /* lower case; of "*.suffix", the suffix with its dot */
    guint port;
    gboolean is_suffix;
} Rule;

struct EgressRules {
    GArray *rows;
};

const char *egress_verdict_str(EgressVerdict verdict)
{
    static const char *const words[] = {
        "none",    "ok",          "malformed",  "too_large", "slow",        "length_required",
        "literal", "not_allowed", "unresolved", "private",   "unreachable", "busy",
        "bytes"};
    return (gsize)verdict < G_N_ELEMENTS(words) ? words[verdict] : "none";
}

/* Would a resolver read the name as a number? Its last label decides. */
static gboolean is_number(const char *name)
{
    const char *last = strrchr(name, '.');
    last = last == NULL ? name : last + 1;
    if (g_ascii_strncasecmp(last, "0x", 2) == 0)
        return TRUE;
    return last[strspn(last, "0123456789")] == '\0';
}

/* Lower-cases a name of LEN bytes into HOST, without a last dot. */
static gboolean host_copy(const char *text, gsize len, char host[EGRESS_HOST_MAX + 1])
{
    if (len > 0 && text[len - 1] == '.')
        len--;
    if (len == 0 || len > EGRESS_HOST_MAX)
        return FALSE;
    gsize label = 0;
    for (gsize i = 0; i < len; i++) {
        char c = g_ascii_tolower(text[i]);
        if (c == '.' ? label == 0 : !g_ascii_isalnum(c) && c != '-' && c != '_')
            return FALSE;
        label = c == '.' ? 0 : label + 1;
        if (label > 63)
            return FALSE;
        host[i] = c;
    }
    host[len] = '\0';
    return label > 0;
}

static gboolean port_read(const char *text, gsize len, guint *ret_port)
{
    guint port = 0;
    if (len == 0 || len > 5)
        return FALSE;
    for (gsize i = 0; i < len; i++) {
        if (!g_ascii_isdigit(text[i]))
            return FALSE;
        port = port * 10 + (guint)(text[i] - '0');
    }
    *ret_port = port;
    return port > 0 && port <= 65535;
}

static void rule_clear(gpointer data)
{
    g_free(((Rule *)data)->host);
}

static gboolean rule_read(const char *text, Rule *ret_rule, GError **error)
{
    char host[EGRESS_HOST_MAX + 1];
    const char *colon = strrchr(text, ':');
    ret_rule->is_suffix = g_str_has_prefix(text, "*.");
    const char *name = ret_rule->is_suffix ? text + 2 : text;
    if (colon == NULL || colon < name || !host_copy(name, (gsize)(colon - name), host) ||
        is_number(host) || !port_read(colon + 1, strlen(colon + 1), &ret_rule->port))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "egress rule %s is not NAME:PORT or *.NAME:PORT (addresses are refused)",
                         text);
    ret_rule->host = g_strconcat(ret_rule->is_suffix ? "." : "", host, NULL);
    return TRUE;
}

EgressRules *egress_rules_new(const char *const *texts, GError **error)
{
    g_autoptr(EgressRules) rules = g_new0(EgressRules, 1);
    rules->rows = g_array_new(FALSE, FALSE, sizeof(Rule));
    g_array_set_clear_func(rules->rows, rule_clear);
    for (; texts != NULL && *texts != NULL; texts++) {
        Rule rule = {0};
        if (rules->rows->len == EGRESS_RULES_MAX) {
            error_set(error, ASSAY_ERROR_LIMIT, "more than %u egress rules", EGRESS_RULES_MAX);
            return NULL;
        }
        if (!rule_read(*texts, &rule, error))
            return NULL;
        g_array_append_val(rules->rows, rule);
    }
    return g_steal_pointer(&rules);
}

void egress_rules_free(EgressRules *rules)
{
    if (rules == NULL)
        return;
    g_array_unref(rules->rows);
    g_free(rules);
}

EgressVerdict egress_rules_judge(const EgressRules *rules, const char *host, guint port)
{
    if (is_number(host))
        return EGRESS_LITERAL;
    for (guint i = 0; i < rules->rows->len; i++) {
        const Rule *rule = &g_array_index(rules->rows, Rule, i);
        if (rule->port == port &&
            (rule->is_suffix ? g_str_has_suffix(host, rule->host) : g_str_equal(host, rule->host)))
            return EGRESS_OK;
    }
    return EGRESS_NOT_ALLOWED;
}

/* What is not public: IANA's special-purpose registries, and multicast. */
static const struct {
    const char *net;
    guint bits;
} not_public[] = {
    {"0.0.0.0", 8},      {"10.0.0.0", 8},     {"100.64.0.0", 10},  {"127.0.0.0", 8},
    {"169.254.0.0", 16}, {"172.16.0.0", 12},  {"192.0.0.0", 24},   {"192.0.2.0", 24},
    {"192.88.99.0", 24}, {"192.168.0.0", 16}, {"198.18.0.0", 15},  {"198.51.100.0", 24},
    {"203.0.113.0", 24}, {"224.0.0.0", 4},    {"240.0.0.0", 4},    {"::", 96},
    {"::ffff:0:0", 96},  {"64:ff9b::", 96},   {"64:ff9b:1::", 48}, {"100::", 64},
    {"2001::", 23},      {"2001:db8::", 32},  {"2002::", 16},      {"3fff::", 20},
    {"5f00::", 16},      {"fc00::", 7},       {"fe80::", 10},      {"fec0::", 10},
    {"ff00::", 8},
};

static gboolean in_net(const guint8 *address, gsize size, const char *net, guint bits)
{
    guint8 base[16];
    if (inet_pton(size == 4 ? AF_INET : AF_INET6, net, base) != 1)
        return FALSE; /* of the other family */
    gsize whole = bits / 8;
    guint8 mask = (guint8)(0xff00 >> (bits % 8));
    return memcmp(address, base, whole) == 0 &&
           (bits % 8 == 0 || ((address[whole] ^ base[whole]) & mask) == 0);
}

gboolean egress_address_ok(const struct sockaddr *address, gboolean unsafe_loopback)
{
    const guint8 *bytes;
    gsize size;
    if (address->sa_family == AF_INET) {
        bytes = (const guint8 *)&((const struct sockaddr_in *)(gconstpointer)address)->sin_addr;
        size = 4;
    } else if (address->sa_family == AF_INET6) {
        bytes = (const guint8 *)&((const struct sockaddr_in6 *)(gconstpointer)address)->sin6_addr;
        size = 16;
    } else {
        return FALSE;
    }
    if (unsafe_loopback && in_net(bytes, size, "127.0.0.0", 8))
        return TRUE;
    for (gsize i = 0; i < G_N_ELEMENTS(not_public); i++)
        if (in_net(bytes, size, not_public[i].net, not_public[i].bits))
            return FALSE;
    return TRUE;
}

/* "host:port", or with a default port "host". */
static EgressVerdict authority_read(const char *text, gsize len, guint default_port,
                                    EgressRequest *request)
{
    if (len > 0 && text[0] == '[')
        return EGRESS_LITERAL;
    const char *colon = memchr(text, ':', len);
    gsize host_len = colon == NULL ? len : (gsize)(colon - text);
    request->port = default_port;
    if (colon != NULL && !port_read(colon + 1, len - host_len - 1, &request->port))
        return EGRESS_MALFORMED;
    return request->port > 0 && host_copy(text, host_len, request->host) ? EGRESS_OK
                                                                         : EGRESS_MALFORMED;
}

/* METHOD http://host[:port]/path: starts the head that the server is sent. */
static EgressVerdict plain_target(const char *target, EgressRequest *request, GString *out)
{
    static const char *const methods[] = {METHODS, NULL};
    static const char scheme[] = "http://";
    if (!g_strv_contains(methods, request->method) ||
        g_ascii_strncasecmp(target, scheme, strlen(scheme)) != 0)
        return EGRESS_MALFORMED;
    const char *authority = target + strlen(scheme);
    gsize len = strcspn(authority, "/?#");
    EgressVerdict verdict = authority_read(authority, len, 80, request);
    const char *path = authority + len;
    g_string_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s", request->method, *path == '/' ? "" : "/",
                    path, request->host);
    if (request->port != 80)
        g_string_append_printf(out, ":%u", request->port);
    g_string_append(out, "\r\nConnection: close\r\n");
    return verdict;
}

static EgressVerdict request_line(const char *line, EgressRequest *request, GString *out)
{
    g_auto(GStrv) words = g_strsplit(line, " ", 4);
    if (g_strv_length(words) != 3 || strlen(words[0]) >= sizeof request->method ||
        (!g_str_equal(words[2], "HTTP/1.1") && !g_str_equal(words[2], "HTTP/1.0")))
        return EGRESS_MALFORMED;
    g_strlcpy(request->method, words[0], sizeof request->method);
    request->is_tunnel = g_str_equal(words[0], "CONNECT");
    return request->is_tunnel ? authority_read(words[1], strlen(words[1]), 0, request)
                              : plain_target(words[1], request, out);
}

/* Headers between client and proxy only; Host is ours. */
static gboolean is_dropped(const char *name)
{
    static const char *const names[] = {
        "connection", "host",    "keep-alive", "proxy-authorization",
        "te",         "trailer", "upgrade",    "proxy-connection"};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        if (g_ascii_strcasecmp(name, names[i]) == 0)
            return TRUE;
    return FALSE;
}

static EgressVerdict header_line(char *line, EgressRequest *request, gboolean *has_length,
                                 GString *out)
{
    char *colon = strchr(line, ':');
    if (colon == NULL || colon == line)
        return EGRESS_MALFORMED;
    *colon = '\0';
    for (const char *at = line; *at != '\0'; at++)
        if (!g_ascii_isalnum(*at) && strchr("!#$%&'*+-.^_`|~", *at) == NULL)
            return EGRESS_MALFORMED;
    const char *value = g_strstrip(colon + 1);
    if (g_ascii_strcasecmp(line, "transfer-encoding") == 0)
        return EGRESS_LENGTH_REQUIRED;
    if (g_ascii_strcasecmp(line, "content-length") == 0) {
        if (*has_length || *value == '-' || *value == '+' ||
            !g_ascii_string_to_unsigned(value, 10, 0, G_MAXINT64, &request->body_bytes, NULL))
            return EGRESS_MALFORMED;
        *has_length = TRUE;
    }
    if (!is_dropped(line))
        g_string_append_printf(out, "%s: %s\r\n", line, value);
    return EGRESS_OK;
}

/* Lines end with CR LF, no byte is a control, and the last line is empty. */
static gboolean is_clean(const char *head, gsize len)
{
    for (gsize i = 0; i < len; i++) {
        guchar c = (guchar)head[i];
        gboolean is_end = c == '\r' && i + 1 < len && head[i + 1] == '\n';
        i += is_end;
        if (!is_end && ((c < 0x20 && c != '\t') || c == 0x7f))
            return FALSE;
    }
    return len >= 4 && memcmp(head + len - 4, "\r\n\r\n", 4) == 0;
}

EgressVerdict egress_request_parse(const char *head, gsize len, EgressRequest *ret_request)
{
    *ret_request = (EgressRequest){0};
    if (!is_clean(head, len))
        return EGRESS_MALFORMED;
    g_autofree char *text = g_strndup(head, len - 4);
    g_auto(GStrv) lines = g_strsplit(text, "\r\n", -1);
    g_autoptr(GString) out = g_string_new(NULL);
    gboolean has_length = FALSE;
    EgressVerdict verdict =
        lines[0] == NULL ? EGRESS_MALFORMED : request_line(lines[0], ret_request, out);
    for (char **line = lines + 1; verdict == EGRESS_OK && lines[0] != NULL && *line != NULL; line++)
        verdict = header_line(*line, ret_request, &has_length, out);
    if (verdict != EGRESS_OK)
        return verdict;
    if (ret_request->is_tunnel) {
        ret_request->body_bytes = 0;
        return EGRESS_OK;
    }
    g_string_append(out, "\r\n");
    ret_request->head = g_string_free(g_steal_pointer(&out), FALSE);
    return EGRESS_OK;
}
