/*
 * The head of a request to the egress proxy, which a box writes.
 *
 * Invariants:
 *   1. What is accepted has a name and a port, and the name is not an address.
 *   2. What the server is sent instead holds one request: its only empty line is its end.
 */
#include "tests/sandbox/fuzz/fuzz.h"

#include "sandbox/egress_rules.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    EgressRequest request = {0};
    EgressVerdict verdict = egress_request_parse((const char *)data, size, &request);
    if (verdict == EGRESS_OK) {
        g_assert_cmpuint(strlen(request.host), >, 0);
        g_assert_cmpuint(request.port, >, 0);
        g_assert_cmpuint(request.port, <=, 65535);
        g_assert_true(request.is_tunnel == (request.head == NULL));
        for (const char *at = request.host; *at != '\0'; at++)
            g_assert_true(g_ascii_isalnum(*at) || strchr("-._", *at) != NULL);
    }
    if (verdict == EGRESS_OK && request.head != NULL) {
        const char *end = strstr(request.head, "\r\n\r\n");
        g_assert_nonnull(end);
        g_assert_cmpstr(end, ==, "\r\n\r\n");
        for (const char *at = strchr(request.head, '\n'); at != NULL; at = strchr(at + 1, '\n'))
            g_assert_true(at > request.head && at[-1] == '\r');
    }
    g_free(request.head);
    return 0;
}

gboolean fuzz_seed(guint i, GByteArray *ret_bytes)
{
    static const char *const seeds[] = {
        "CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n",
        "GET http://pypi.org/simple/ HTTP/1.1\r\nHost: pypi.org\r\nAccept: */*\r\n\r\n",
        "POST http://a.example:8080/x?y HTTP/1.1\r\nHost: a.example:8080\r\nContent-Length: "
        "5\r\n\r\n",
        "GET http://10.0.0.1/ HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n",
        "GET http://[::1]/ HTTP/1.0\r\n\r\n",
        "GET http://a@b.example:80/ HTTP/1.1\r\nProxy-Connection: keep-alive\r\n\r\n",
        "POST http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"};
    if (i >= G_N_ELEMENTS(seeds))
        return FALSE;
    g_byte_array_append(ret_bytes, (const guint8 *)seeds[i], (guint)strlen(seeds[i]));
    return TRUE;
}
