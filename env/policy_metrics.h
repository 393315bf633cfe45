/*
 * Latencies of assay policy serve, and its page of figures for Prometheus.
 */
#pragma once

#include "policy/engine.h"

typedef enum PolicyLatency {
    LATENCY_FIRST_TOKEN = 0, /* from the request's arrival */
    LATENCY_TOKEN,           /* from the one before, of the same sample */
    LATENCY_CALL,            /* from arrival to the last token of the last sample */
    LATENCY_QUEUE,           /* from arrival until its prompt was begun */
    LATENCIES,
} PolicyLatency;

#define LATENCY_BUCKETS 20

/* Zero it. */
typedef struct PolicyMetrics {
    struct {
        guint64 counts[LATENCY_BUCKETS]; /* the last one has no upper end */
        double sum_s;
    } latencies[LATENCIES];
} PolicyMetrics;

void policy_metrics_add(PolicyMetrics *metrics, PolicyLatency what, gint64 from_us, gint64 to_us);

/* Appends name_bucket, name_sum and name_count of all latencies, under our names and vLLM's. */
void policy_metrics_print(const PolicyMetrics *metrics, GString *out);
