/*
 * What the egress proxy lets through: names and ports, addresses, and the head of a request.
 *
 *     g_autoptr(EgressRules) rules = egress_rules_new(texts, error);      "pypi.org:443"
 *     EgressVerdict verdict = egress_request_parse(head, len, &request);  then
 *     verdict = egress_rules_judge(rules, request.host, request.port);
 */
#pragma once

#include <glib.h>
#include <sys/socket.h>

#define EGRESS_HOST_MAX  253u
#define EGRESS_RULES_MAX 256u

typedef enum EgressVerdict {
    EGRESS_NONE = 0,
    EGRESS_OK = 1,
    EGRESS_MALFORMED = 2,       /* not a request we understand */
    EGRESS_TOO_LARGE = 3,       /* its head is */
    EGRESS_SLOW = 4,            /* its head did not arrive in time */
    EGRESS_LENGTH_REQUIRED = 5, /* a chunked body */
    EGRESS_LITERAL = 6,         /* an address instead of a name */
    EGRESS_NOT_ALLOWED = 7,     /* no rule names this host and port */
    EGRESS_UNRESOLVED = 8,
    EGRESS_PRIVATE = 9, /* the name resolves to an address that is not public */
    EGRESS_UNREACHABLE = 10,
    EGRESS_BUSY = 11,  /* too many connections */
    EGRESS_BYTES = 12, /* the box has moved all the bytes it may */
} EgressVerdict;
const char *egress_verdict_str(EgressVerdict verdict);

typedef struct EgressRules EgressRules;

/* `texts` is NULL-terminated: "host:port", "*.suffix:port". An address, a missing port and anything
 * that is no name is an error that names the rule. */
EgressRules *egress_rules_new(const char *const *texts, GError **error);
void egress_rules_free(EgressRules *rules);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EgressRules, egress_rules_free)

/* `host` is as egress_request_parse gives it. OK, LITERAL or NOT_ALLOWED. */
EgressVerdict egress_rules_judge(const EgressRules *rules, const char *host, guint port);

/* Is this a public unicast address? Loopback counts as one only for tests that say so. */
gboolean egress_address_ok(const struct sockaddr *address, gboolean unsafe_loopback);

typedef struct EgressRequest {
    gboolean is_tunnel; /* CONNECT */
    char method[8];
    char host[EGRESS_HOST_MAX + 1]; /* lower case, without the last dot */
    guint port;
    guint64 body_bytes; /* that follow the head; 0 for a tunnel */
    char *head;         /* what the server is sent first; NULL for a tunnel. g_free */
} EgressRequest;

/* Parses a whole head, up to and with its empty line. OK, MALFORMED, LITERAL, LENGTH_REQUIRED. */
EgressVerdict egress_request_parse(const char *head, gsize len, EgressRequest *ret_request);
