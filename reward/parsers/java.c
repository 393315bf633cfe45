/*
 * Maven, one test per command under `set -x`, and Gradle with a result line per test.
 *
 * Invariants: release 4.1 gives a Maven result to the last command seen, release 5 to the first
 * one still waiting; results that nobody waited for are dealt out, in order, at the end.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/java.py.
 */
#include "reward/log_parser.h"

static Span *queue_take(GArray *queue, guint *head)
{
    return *head < queue->len ? &g_array_index(queue, Span, (*head)++) : NULL;
}

static Span build_status(Span word)
{
    return span_eq(word, SPAN("SUCCESS")) ? STATUS_PASSED : STATUS_FAILED;
}

static void maven_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex command_re = {.pattern = "^.*-Dtest=(\\S+).*$"};
    static Regex result_re = {.pattern = "^.*BUILD (SUCCESS|FAILURE)$"};
    (void)self;
    g_autoptr(GArray) waiting = g_array_new(FALSE, FALSE, sizeof(Span));
    g_autoptr(GArray) unclaimed = g_array_new(FALSE, FALSE, sizeof(Span));
    guint waiting_head = 0, unclaimed_head = 0;
    Span current = SPAN("---NO TEST NAME FOUND YET---"), line;

    while (span_cut(&log, '\n', &line)) {
        Match m;
        line = span_strip(line);
        if (regex_match(&command_re, line, &ctx->gave_up, &m)) {
            current = m.group[1];
            g_array_append_val(waiting, current);
        }
        if (!regex_match(&result_re, line, &ctx->gave_up, &m))
            continue;
        Span status = build_status(m.group[1]);
        const Span *name =
            ctx->version == GRADER_4_1 ? &current : queue_take(waiting, &waiting_head);
        if (name != NULL)
            status_map_set(map, *name, status);
        else
            g_array_append_val(unclaimed, status);
    }

    const Span *name, *status;
    while (ctx->version == GRADER_5 && unclaimed_head < unclaimed->len &&
           (name = queue_take(waiting, &waiting_head)) != NULL &&
           (status = queue_take(unclaimed, &unclaimed_head)) != NULL)
        status_map_set(map, *name, *status);
}

static void gradle_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex full_re = {.pattern = "^([^>].+)\\s+(PASSED|FAILED)$"};
    static Regex name_re = {.pattern = "^([^>]\\S*\\s+>\\s+\\S+)$"};
    (void)self;
    Span pending = {NULL, 0}, line;
    while (span_cut(&log, '\n', &line)) {
        Match m;
        line = span_strip(line);
        if (regex_match(&full_re, line, &ctx->gave_up, &m)) {
            status_map_set(map, m.group[1], m.group[2]);
            pending = (Span){NULL, 0};
        } else if (ctx->version == GRADER_4_1) {
            continue;
        } else if (regex_match(&name_re, line, &ctx->gave_up, &m)) {
            pending = m.group[1];
        } else if (pending.ptr != NULL &&
                   (span_eq(line, STATUS_PASSED) || span_eq(line, STATUS_FAILED))) {
            status_map_set(map, pending, line);
            pending = (Span){NULL, 0};
        }
    }
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_java[] = {
    {"maven", maven_parse, .repos = NAMES("google/gson", "apache/druid", "javaparser/javaparser")},
    {"gradle_custom", gradle_parse, .repos = NAMES("apache/lucene", "reactivex/rxjava")},
    {0},
};
