/*
 * GET /metrics: Prometheus text 0.0.4.
 *
 * Invariant: labels are of low cardinality: no ids of tasks or grades.
 */
#include "env/routes.h"

#include "env/episode_hosts.h"
#include "env/service.h"

#include <stdio.h>
#include <unistd.h>

static void gauge(GString *text, const char *name, double value)
{
    g_string_append_printf(text, "%s %.17g\n", name, value);
}

static void add_grades(GString *text, Service *service)
{
    GradeCounts counts = {0};
    if (!grade_counts(service->store, &counts, NULL))
        return;
    g_string_append_printf(text, "assay_queue_depth{kind=\"grade\"} %" G_GINT64_FORMAT "\n",
                           counts.by_state[GRADE_QUEUED]);
    double oldest = counts.oldest_queued_ms > 0
                        ? (double)(g_get_real_time() / 1000 - counts.oldest_queued_ms) / 1000.0
                        : 0.0;
    gauge(text, "assay_queue_oldest_seconds{kind=\"grade\"}", oldest);
    for (int i = VERDICT_RESOLVED; i < VERDICT_COUNT; i++)
        g_string_append_printf(text, "assay_grades_total{verdict=\"%s\"} %" G_GINT64_FORMAT "\n",
                               verdict_str((Verdict)i), counts.by_verdict[i]);
    g_string_append_printf(text, "assay_grades_failed_total %" G_GINT64_FORMAT "\n",
                           counts.by_state[GRADE_FAILED]);
}

static void add_store(GString *text, Service *service)
{
    StoreStats stats;
    gint64 oldest = 0, newest = 0;
    store_stats(service->store, &stats);
    event_range(service->store, &oldest, &newest, NULL);
    gauge(text, "assay_events_seq", (double)newest);
    gauge(text, "assay_store_commit_seconds_sum", (double)stats.commit_us_total / 1e6);
    gauge(text, "assay_store_commit_seconds_count", (double)stats.n_commits);
    gauge(text, "assay_store_commit_seconds_max", (double)stats.commit_us_max / 1e6);
    gauge(text, "assay_store_group_size_sum", (double)stats.n_operations);
    gauge(text, "assay_store_group_size_count", (double)stats.n_commits);
    gauge(text, "assay_store_wal_bytes", (double)stats.wal_bytes);
    gauge(text, "assay_store_bytes", (double)stats.db_bytes);
    gauge(text, "assay_disk_free_bytes{dir=\"state\"}", (double)service_disk_free(service));
}

static void add_http(GString *text, Service *service)
{
    GHashTableIter iter;
    gpointer key, value;
    g_hash_table_iter_init(&iter, service->replies);
    while (g_hash_table_iter_next(&iter, &key, &value))
        g_string_append_printf(text, "assay_http_requests_total{%s} %" G_GUINT64_FORMAT "\n",
                               (char *)key, *(guint64 *)value);
    gauge(text, "assay_http_connections{kind=\"unix\"}",
          listener_n_connections(http_listener(service->http)));
    gauge(text, "assay_http_streams", service->streams->len);
    gauge(text, "assay_http_rejected_total{reason=\"peer\"}",
          (double)listener_n_rejected(http_listener(service->http)));
}

static double rss_bytes(void)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/self/statm", &text, NULL, NULL))
        return 0;
    g_auto(GStrv) parts = g_strsplit(text, " ", 3);
    return parts[0] != NULL && parts[1] != NULL
               ? g_ascii_strtod(parts[1], NULL) * (double)sysconf(_SC_PAGESIZE)
               : 0;
}

static void add_episodes(GString *text, Service *service)
{
    gint64 by_ending[EPISODE_ENDINGS_MAX] = {0};
    if (!episode_counts(service->store, by_ending, NULL))
        return;
    gauge(text, "assay_episodes_open", (double)by_ending[EPISODE_OPEN]);
    for (EpisodeEnd end = EPISODE_SUBMITTED; end < EPISODE_ENDS; end++)
        g_string_append_printf(text, "assay_episodes_total{end=\"%s\"} %" G_GINT64_FORMAT "\n",
                               episode_end_rule(end)->name, by_ending[end]);
    gauge(text, "assay_episode_steps_total", (double)service->counters[COUNT_EPISODE_STEPS]);
    gauge(text, "assay_episodes_loaded", episode_hosts_n_loaded(service->episodes));
    gauge(text, "assay_episode_hosts{state=\"alive\"}", episode_hosts_n_alive(service->episodes));
    gauge(text, "assay_episode_hosts_lost_total", (double)episode_hosts_n_lost(service->episodes));
}

void api_metrics(Request *req)
{
    Service *service = req->service;
    g_autoptr(GString) text = g_string_new(NULL);
    g_string_append_printf(text, "assay_build_info{version=\"%s\"} 1\n", ASSAY_VERSION);
    gauge(text, "assay_start_time_seconds", (double)service->started_ms / 1000.0);
    add_http(text, service);
    add_grades(text, service);
    add_store(text, service);
    gauge(text, "assay_grade_cache_hits_total", (double)service->counters[COUNT_CACHE_HITS]);
    gauge(text, "assay_grade_coalesced_total", (double)service->counters[COUNT_COALESCED]);
    gauge(text, "assay_grade_requeued_total", (double)service->counters[COUNT_REQUEUED]);
    gauge(text, "assay_grade_result_refused_total", (double)service->counters[COUNT_CANARY]);
    add_episodes(text, service);
    gauge(text, "assay_leases_lost_total", (double)service->counters[COUNT_LEASES_LOST]);
    gauge(text, "assay_events_lagged_total", (double)service->counters[COUNT_EVENTS_LAGGED]);
    gauge(text, "assay_workers_lost_total", (double)worker_pool_n_lost(service->pool));
    gauge(text, "assay_boxes{state=\"running\"}", worker_pool_n_busy(service->pool));
    gauge(text, "assay_workers{state=\"alive\"}", worker_pool_n_alive(service->pool));
    gauge(text, "process_resident_memory_bytes", rss_bytes());
    request_reply_text(req, 200, "text/plain; version=0.0.4", text->str);
}
