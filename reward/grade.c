/*
 * Grading: markers, validity, pass and fail lists, resolution.
 *
 * Invariants:
 *   1. A log that is not valid grades as RESOLUTION_NONE, whatever is in it.
 *   2. A match that ran out of steps makes the log not valid: under fail_only a missing line would
 *      otherwise read as a pass.
 *   3. In strict mode nothing outside [slice_start, slice_end) has influence.
 *
 * Not here: evidence of cheating (witness.c), numbers for training (reward.c), files (report.c).
 */
#include "reward/grade.h"

#include "base/error.h"

#include <string.h>

#define MARK_START SPAN(">>>>> Start Test Output")
#define MARK_END   SPAN(">>>>> End Test Output")

static const char *const bad_codes[] = {
    ">>>>> Patch Apply Failed",
    ">>>>> Reset Failed",
    ">>>>> Tests Errored",
    ">>>>> Tests Timed Out",
};

/* 4.1 chooses by repository what 5 reads from the row. */
static const char *const fail_only_repos[] = {
    "chartjs/Chart.js",
    "processing/p5.js",
    "markedjs/marked",
    "bpmn-io/bpmn-js",
    "openlayers/openlayers",
    "eslint/eslint",
    NULL,
};

/* A sign that a runner ran at least one test. */
static Regex suite_ran_re = {
    .pattern = "Executed [1-9]\\d* of \\d+"
               "|TOTAL: [1-9]\\d* (?:SUCCESS|FAILED)"
               "|[1-9]\\d* passing"
               "|Tests:\\s+[1-9]\\d*"
               "|Test Suites:\\s+(?:\\d+ \\w+, )*[1-9]\\d* total"
               "|^# tests [1-9]\\d*"
               "|[1-9]\\d* specs?, \\d+ failures?"
               "|': ok$",
    .flags = REGEX_MULTILINE,
};

static const char *const mode_names[] = {"strict", "compat-4.1", "compat-5"};
static const char *const eval_names[] = {"pass_and_fail", "fail_only"};

const char *grade_mode_to_str(GradeMode mode)
{
    g_assert((gsize)mode < G_N_ELEMENTS(mode_names));
    return mode_names[mode];
}

gboolean grade_mode_from_str(const char *text, GradeMode *ret_mode)
{
    for (gsize i = 0; i < G_N_ELEMENTS(mode_names); i++) {
        if (strcmp(mode_names[i], text) != 0)
            continue;
        *ret_mode = (GradeMode)i;
        return TRUE;
    }
    return FALSE;
}

gboolean eval_type_from_str(const char *text, EvalType *ret_type)
{
    for (gsize i = 0; i < G_N_ELEMENTS(eval_names); i++) {
        if (strcmp(eval_names[i], text) != 0)
            continue;
        *ret_type = (EvalType)i;
        return TRUE;
    }
    return FALSE;
}

const char *resolution_to_str(Resolution resolution)
{
    static const char *const names[] = {NULL, "RESOLVED_NO", "RESOLVED_PARTIAL", "RESOLVED_FULL"};
    g_assert((gsize)resolution < G_N_ELEMENTS(names));
    return names[resolution];
}

/* ---- is the log valid, and what does it say ---- */

typedef struct Reading {
    const GradeInput *in;
    const LogParser *parser;
    LogContext ctx;
    Span content, slice;
    StatusMap *map;
    const char *why_not;
} Reading;

/* content.split(START)[1].split(END)[0]: a second start marker ends the slice too. */
static Span marked_slice(Span content)
{
    Span after, slice;
    span_split_once(content, MARK_START, NULL, &after);
    span_split_once(after, MARK_START, &slice, NULL);
    span_split_once(slice, MARK_END, &slice, NULL);
    return slice;
}

static gboolean reading_find_slice(Reading *reading)
{
    if (reading->in->mode == GRADE_STRICT) {
        reading->slice = reading->content;
        return TRUE;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(bad_codes); i++) {
        if (span_has(reading->content, span_of(bad_codes[i]))) {
            reading->why_not = "a marker of a failed step is in the log";
            return FALSE;
        }
    }
    if (!span_has(reading->content, MARK_START) || !span_has(reading->content, MARK_END)) {
        reading->why_not = "the start or the end marker is missing";
        return FALSE;
    }
    reading->slice = marked_slice(reading->content);
    return TRUE;
}

static void reading_parse(Reading *reading)
{
    reading->parser->parse(reading->parser, reading->slice, &reading->ctx, reading->map);
    if (status_map_len(reading->map) == 0 && reading->ctx.raised == NULL &&
        reading->in->mode != GRADE_STRICT)
        reading->parser->parse(reading->parser, reading->content, &reading->ctx, reading->map);
}

static gboolean any_failure(const StatusMap *map)
{
    for (guint i = 0; i < status_map_len(map); i++)
        if (status_is_fail(status_map_at(map, i)->status))
            return TRUE;
    return FALSE;
}

/* TRUE when the run is known to have exited with something else than 0. */
static gboolean exited_nonzero(Reading *reading)
{
    static Regex exit_re = {.pattern = ">>>>> Test Exit Code:\\s*(-?\\d+)"};
    const GradeInput *in = reading->in;
    if (in->mode == GRADE_STRICT)
        return in->exit_known && in->exit_code != 0;

    Match m;
    if (!regex_search(&exit_re, reading->content, 0, &reading->ctx.gave_up, &m))
        return FALSE;
    const char *end = m.group[1].ptr + m.group[1].len;
    for (const char *p = m.group[1].ptr; p < end; p = text_next(p))
        if (g_unichar_digit_value(g_utf8_get_char(p)) > 0)
            return TRUE;
    return FALSE;
}

/* The rules that 5 added: a run that left no trace, and a failed run that shows no failure. */
static const char *reading_doubt(Reading *reading)
{
    if (reading->in->mode == GRADE_COMPAT_4_1)
        return NULL;
    if (status_map_len(reading->map) == 0)
        return regex_search(&suite_ran_re, reading->content, 0, &reading->ctx.gave_up, NULL)
                   ? NULL
                   : "no result was read and nothing shows that a test ran";
    if (!any_failure(reading->map) && exited_nonzero(reading))
        return "the test command failed but no test did";
    return NULL;
}

static gboolean reading_run(Reading *reading)
{
    if (!reading_find_slice(reading))
        return FALSE;
    reading_parse(reading);
    if (reading->ctx.raised != NULL)
        reading->why_not = "the parser cannot read this log";
    else
        reading->why_not = reading_doubt(reading);
    if (reading->ctx.gave_up)
        reading->why_not = "a line of the log takes too long to match";
    return reading->why_not == NULL;
}

/* ---- lists ---- */

static gsize count_char(Span text, char c)
{
    gsize count = 0;
    for (gsize i = 0; i < text.len; i++)
        count += text.ptr[i] == c;
    return count;
}

/* The entry that stands for a test. 5 also takes ids that were cut inside their brackets, when
 * all names that begin so agree on passing. */
static const StatusEntry *entry_for(const StatusMap *map, Span test, GraderVersion version)
{
    const StatusEntry *exact = status_map_find(map, test), *first = NULL;
    if (exact != NULL || version == GRADER_4_1 || count_char(test, '[') <= count_char(test, ']'))
        return exact;
    for (guint i = 0; i < status_map_len(map); i++) {
        const StatusEntry *entry = status_map_at(map, i);
        if (!span_starts(entry->name, test))
            continue;
        if (first == NULL)
            first = entry;
        else if (status_is_pass(first->status) != status_is_pass(entry->status))
            return NULL;
    }
    return first;
}

typedef enum Side {
    SIDE_NONE = 0,
    SIDE_SUCCESS,
    SIDE_FAILURE,
} Side;

static Side side_of(const StatusMap *map, Span test, EvalType type, GraderVersion version,
                    gboolean maintained)
{
    if (type == EVAL_FAIL_ONLY) {
        const StatusEntry *exact = status_map_find(map, test);
        return exact != NULL && span_eq(exact->status, STATUS_FAILED) ? SIDE_FAILURE : SIDE_SUCCESS;
    }
    const StatusEntry *entry = entry_for(map, test, version);
    if (entry == NULL || status_is_fail(entry->status))
        return SIDE_FAILURE;
    if (status_is_pass(entry->status))
        return SIDE_SUCCESS;
    if (!span_eq(entry->status, STATUS_SKIPPED) || version == GRADER_4_1)
        return SIDE_NONE;
    return maintained ? SIDE_SUCCESS : SIDE_FAILURE;
}

static double list_fill(TestList *list, const char *const *tests, const StatusMap *map,
                        EvalType type, GraderVersion version, gboolean maintained)
{
    list->success = g_ptr_array_new_with_free_func(g_free);
    list->failure = g_ptr_array_new_with_free_func(g_free);
    for (; tests != NULL && *tests != NULL; tests++) {
        Side side = side_of(map, span_of(*tests), type, version, maintained);
        if (side != SIDE_NONE)
            g_ptr_array_add(side == SIDE_SUCCESS ? list->success : list->failure, g_strdup(*tests));
    }
    guint total = list->success->len + list->failure->len;
    return total == 0 ? 1.0 : (double)list->success->len / total;
}

static Resolution resolution_of(double f2p, double p2p)
{
    if (p2p < 1 || f2p <= 0)
        return RESOLUTION_NO;
    return f2p < 1 ? RESOLUTION_PARTIAL : RESOLUTION_FULL;
}

/* ---- the whole ---- */

static gboolean input_check(const GradeInput *in, const LogParser **ret_parser, GError **error)
{
    if (in->log_len > GRADE_LOG_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "log: %zu bytes, more than %u", in->log_len,
                         GRADE_LOG_BYTES_MAX);
    if (in->mode == GRADE_STRICT &&
        (in->slice_start > in->slice_end || in->slice_end > in->log_len))
        return error_set(error, ASSAY_ERROR_INPUT, "slice %zu-%zu of a log of %zu bytes",
                         in->slice_start, in->slice_end, in->log_len);

    const LogParser *parser = NULL;
    if (in->mode == GRADE_COMPAT_4_1 && in->repo != NULL)
        parser = log_parser_for_repo(in->repo);
    if (parser == NULL && in->log_parser != NULL)
        parser = log_parser_find(in->log_parser);
    if (parser == NULL)
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "no log parser \"%s\" (repository %s)",
                         in->log_parser == NULL ? "" : in->log_parser,
                         in->repo == NULL ? "unknown" : in->repo);
    *ret_parser = parser;
    return TRUE;
}

static EvalType input_eval_type(const GradeInput *in)
{
    if (in->mode != GRADE_COMPAT_4_1 || in->repo == NULL)
        return in->eval_type;
    return g_strv_contains(fail_only_repos, in->repo) ? EVAL_FAIL_ONLY : EVAL_PASS_AND_FAIL;
}

gboolean grade_log(const GradeInput *in, GradeResult *ret, GError **error)
{
    Reading reading = {.in = in};
    if (!input_check(in, &reading.parser, error))
        return FALSE;

    GraderVersion version = in->mode == GRADE_COMPAT_4_1 ? GRADER_4_1 : GRADER_5;
    gsize from = in->mode == GRADE_STRICT ? in->slice_start : 0;
    gsize to = in->mode == GRADE_STRICT ? in->slice_end : in->log_len;
    g_autofree char *text =
        text_read((const char *)in->log + from, to - from, &reading.content.len);
    reading.content.ptr = text;
    reading.ctx = (LogContext){
        .version = version, .instance_id = in->instance_id, .repo_version = in->repo_version};
    reading.map = status_map_new();

    GradeResult result = {.found = reading_run(&reading)};
    if (!result.found) {
        status_map_free(reading.map);
        reading.map = status_map_new();
    }
    result.map = reading.map;
    result.why_not = reading.why_not;
    result.raised = g_steal_pointer(&reading.ctx.raised);
    result.gave_up = reading.ctx.gave_up;
    EvalType type = input_eval_type(in);
    result.f2p_fraction = list_fill(&result.f2p, in->f2p, result.map, type, version, FALSE);
    result.p2p_fraction = list_fill(&result.p2p, in->p2p, result.map, type, version, TRUE);
    if (result.found)
        result.resolution = resolution_of(result.f2p_fraction, result.p2p_fraction);
    *ret = result;
    return TRUE;
}

static void list_clear(TestList *list)
{
    g_clear_pointer(&list->success, g_ptr_array_unref);
    g_clear_pointer(&list->failure, g_ptr_array_unref);
}

void grade_result_clear(GradeResult *result)
{
    g_clear_pointer(&result->map, status_map_free);
    g_clear_pointer(&result->raised, g_free);
    list_clear(&result->f2p);
    list_clear(&result->p2p);
}
