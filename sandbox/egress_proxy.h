/*
 * The egress proxy at work: one thread per connection of a box, everything bounded.
 */
#pragma once

#include "sandbox/egress_rules.h"

#define EGRESS_CONNECTIONS_MAX 64u         /* at a time; more are answered 503 and closed */
#define EGRESS_HEAD_MAX        (16u << 10) /* bytes of a request's head */
#define EGRESS_HEAD_MS         10000u      /* for the whole head to arrive */
#define EGRESS_IDLE_MS         60000u      /* without a byte in either direction */
#define EGRESS_CONNECT_MS      15000u      /* to reach a server, all its addresses together */
#define EGRESS_LINES_MAX       20000u      /* log lines of one box */

/* Descriptors of assay-egress. */
#define EGRESS_LISTENER 3 /* inside the box's network */
#define EGRESS_CONTROL  4 /* ends with the box */
#define EGRESS_LOG      5 /* takes lines; may be absent */
#define EGRESS_PROGRAM  6 /* closed at once */

typedef struct EgressConfig {
    EgressRules *rules;
    guint64 bytes_max; /* moved in both directions while the box lives; 0: not limited */
    guint head_ms, idle_ms;
    int log_fd; /* -1: none */
    /* For tests only. */
    GStrv unsafe_hosts; /* "name=address": used instead of DNS; NULL: DNS */
    gboolean unsafe_loopback;
} EgressConfig;

/* Accepts on `listener` until `control` ends. The configuration must live as long as the process.
 */
void egress_serve(const EgressConfig *config, int listener, int control);
