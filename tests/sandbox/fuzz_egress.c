/*
 * The head of a request to the egress proxy, as a payload writes it, and its rules.
 *
 * What must hold of a head that is understood: an address, in any spelling that the C library takes
 * for one, is judged to be one; what the server is sent is one request with one host and at most
 * one length, so that proxy and server cannot disagree on where it ends.
 */
#include "sandbox/egress_rules.h"
#include "tests/sandbox/fuzz.h"

#include <arpa/inet.h>
#include <string.h>

static guint count_fields(char **lines, const char *name)
{
    guint n = 0;
    for (char **line = lines; *line != NULL; line++) {
        const char *colon = strchr(*line, ':');
        g_autofree char *field = colon == NULL ? NULL : g_strndup(*line, (gsize)(colon - *line));
        n += field != NULL && g_ascii_strcasecmp(g_strstrip(field), name) == 0;
    }
    return n;
}

static void check_host(const EgressRequest *request)
{
    struct in_addr v4;
    struct in6_addr v6;
    g_autoptr(EgressRules) none = egress_rules_new(NULL, NULL);
    gsize len = strlen(request->host);
    g_assert_cmpuint(len, >=, 1);
    g_assert_cmpuint(len, <=, EGRESS_HOST_MAX);
    g_assert_cmpuint(strspn(request->host, "abcdefghijklmnopqrstuvwxyz0123456789.-_"), ==, len);
    if (inet_aton(request->host, &v4) != 0 || inet_pton(AF_INET6, request->host, &v6) == 1)
        g_assert_cmpint(egress_rules_judge(none, request->host, request->port), ==, EGRESS_LITERAL);
    g_assert_cmpuint(request->port, >=, 1);
    g_assert_cmpuint(request->port, <=, 65535);
}

static void check_head(const EgressRequest *request)
{
    if (request->is_tunnel) {
        g_assert_null(request->head);
        return;
    }
    const char *end = strstr(request->head, "\r\n\r\n");
    g_assert_nonnull(end);
    g_assert_cmpstr(end, ==, "\r\n\r\n");
    g_auto(GStrv) lines = g_strsplit(request->head, "\r\n", -1);
    for (char **line = lines; *line != NULL; line++)
        g_assert_null(strpbrk(*line, "\r\n"));
    g_assert_cmpuint(count_fields(lines + 1, "host"), ==, 1);
    g_assert_cmpuint(count_fields(lines + 1, "content-length"), <=, 1);
    g_assert_cmpuint(count_fields(lines + 1, "transfer-encoding"), ==, 0);
}

/* A rule of the same bytes: refused with an error, or a name and a port. */
static void try_rule(const guint8 *data, gsize len)
{
    g_autofree char *text = g_strndup((const char *)data, len);
    const char *const texts[] = {text, NULL};
    g_autoptr(GError) error = NULL;
    g_autoptr(EgressRules) rules = egress_rules_new(texts, &error);
    g_assert_true((rules == NULL) == (error != NULL));
    if (rules != NULL)
        g_assert_cmpint(egress_rules_judge(rules, "127.0.0.1", 443), !=, EGRESS_OK);
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    EgressRequest request = {0};
    if (egress_request_parse((const char *)data, len, &request) == EGRESS_OK) {
        check_host(&request);
        check_head(&request);
    }
    g_free(request.head);
    try_rule(data, len);
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const char *const texts[] = {
        "CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n",
        "GET http://deb.debian.org/debian/x HTTP/1.1\r\nHost: deb.debian.org\r\nAccept: "
        "*/*\r\n\r\n",
        "POST http://a.b:8080/ HTTP/1.1\r\nHost: a.b:8080\r\nContent-Length: 5\r\n"
        "Connection: keep-alive\r\n\r\n",
        "PUT http://a.b/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "CONNECT 127.1:443 HTTP/1.1\r\n\r\n",
        "GET http://0x7f000001/ HTTP/1.1\r\n\r\n",
        "GET http://[::1]:80/ HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET http://u:p@a.b/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "pypi.org:443",
        "*.debian.org:80",
        "127.0.0.1:80"};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_ptr_array_add(seeds, g_bytes_new_static(texts[i], strlen(texts[i])));
}
