/*
 * Histograms of latencies.
 *
 * Invariant: buckets are cumulative when printed, as Prometheus wants them, and their ends never
 * change: each is 2 times the one before, from 0.5 ms on.
 */
#include "env/policy_metrics.h"

#define FIRST_END_S 0.0005

static const char *const names[LATENCIES][2] = {
    [LATENCY_FIRST_TOKEN] = {"assay_policy_ttft_seconds", "vllm:time_to_first_token_seconds"},
    [LATENCY_TOKEN] = {"assay_policy_token_seconds", "vllm:time_per_output_token_seconds"},
    [LATENCY_CALL] = {"assay_policy_e2e_seconds", "vllm:e2e_request_latency_seconds"},
    [LATENCY_QUEUE] = {"assay_policy_queue_seconds", "vllm:request_queue_time_seconds"},
};

void policy_metrics_add(PolicyMetrics *metrics, PolicyLatency what, gint64 from_us, gint64 to_us)
{
    double seconds = (double)MAX(0, to_us - from_us) / 1e6, end = FIRST_END_S;
    guint bucket = 0;
    for (; bucket < LATENCY_BUCKETS - 1 && seconds > end; bucket++)
        end *= 2;
    metrics->latencies[what].counts[bucket]++;
    metrics->latencies[what].sum_s += seconds;
}

static void print_one(const PolicyMetrics *metrics, PolicyLatency what, const char *name,
                      GString *out)
{
    guint64 count = 0;
    double end = FIRST_END_S;
    g_string_append_printf(out, "# TYPE %s histogram\n", name);
    for (guint i = 0; i < LATENCY_BUCKETS - 1; i++, end *= 2) {
        count += metrics->latencies[what].counts[i];
        g_string_append_printf(out, "%s_bucket{le=\"%g\"} %" G_GUINT64_FORMAT "\n", name, end,
                               count);
    }
    count += metrics->latencies[what].counts[LATENCY_BUCKETS - 1];
    g_string_append_printf(out,
                           "%s_bucket{le=\"+Inf\"} %" G_GUINT64_FORMAT
                           "\n%s_sum %.9g\n%s_count %" G_GUINT64_FORMAT "\n",
                           name, count, name, metrics->latencies[what].sum_s, name, count);
}

void policy_metrics_print(const PolicyMetrics *metrics, GString *out)
{
    for (guint what = 0; what < LATENCIES; what++)
        for (guint i = 0; i < G_N_ELEMENTS(names[what]); i++)
            print_one(metrics, what, names[what][i], out);
}
