/*
 * Test: calls that tell the faulty code from the right one.
 *
 *     clamp(5, 1, 3) => 3
 *
 * 1. A call is one that tasks/test_call.h lets through.
 * 2. All values must be right for the right code, and at least one must not come from the faulty
 *    code. Both are run by the verdicts, which compare outside the box.
 */
#include "env/train_kind.h"

#include "base/error.h"
#include "tasks/test_call.h"

#include <math.h>
#include <string.h>

#define ARROW       " => "
#define CALLS_MAX   8u
#define VALUE_BYTES 200u

/* ---- the task of the tests ---- */

static gboolean value_ok(const char *value)
{
    for (const char *at = value; *at; at++)
        if (!g_ascii_isprint(*at))
            return FALSE;
    return *value && strlen(value) <= VALUE_BYTES;
}

static const char *harness_of(const TrainTask *task, const char *key)
{
    return json_string_value(json_object_get(json_object_get(task->task->json, "harness"), key));
}

static gboolean call_ok(const TrainTask *task, const char *call, gboolean is_python)
{
    g_autofree char *shape = test_call_shape(call, harness_of(task, "call"), is_python);

    return !g_strcmp0(shape, harness_of(task, "shape"));
}

/* What the policy's lines are as calls; NULL: they are none. */
static json_t *calls_of(const TrainTask *task, const char *block)
{
    g_auto(GStrv) lines = g_strsplit(block, "\n", -1);
    g_autoptr(json_t) expected = json_array();
    g_autoptr(GString) driver = g_string_new(harness_of(task, "head"));
    const json_t *own = json_object_get(task->task->json, "calls");
    const char *language = json_string_value(json_object_get(own, "language"));

    for (char **line = lines; *line; line++) {
        char *arrow = strstr(g_strstrip(*line), ARROW);

        if (!**line)
            continue;
        if (!arrow || json_array_size(expected) == CALLS_MAX)
            return NULL;
        *arrow = '\0';
        if (!call_ok(task, *line, g_str_equal(language, "python")) ||
            !value_ok(arrow + strlen(ARROW)))
            return NULL;
        g_string_append_printf(driver, "%s%s%s", harness_of(task, "before"), *line,
                               harness_of(task, "after"));
        json_array_append_new(expected, json_string(arrow + strlen(ARROW)));
    }
    if (json_array_size(expected) == 0)
        return NULL;
    g_string_append(driver, harness_of(task, "tail"));
    return json_pack("{s:s, s:O, s:s, s:O}", "language", language, "sources",
                     json_object_get(own, "sources"), "driver", driver->str, "expected", expected);
}

/* ---- the kind ---- */

static gboolean open_test(TrainTask *task, GError **error)
{
    static const char *const keys[] = {"call", "shape", "head", "before", "after", "tail"};
    const char *solution = json_opt_str(task->task->json, "solution", "", error);
    g_autoptr(json_t) calls = NULL;

    if (!solution || !kind_open_sources(task, error))
        return FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
        if (!harness_of(task, keys[i]))
            return error_set(error, ASSAY_ERROR_INPUT, "field harness.%s: missing or no text",
                             keys[i]);
    if (*solution && !(calls = calls_of(task, solution)))
        return error_set(error, ASSAY_ERROR_INPUT, "field solution: it is no list of calls");
    task->fix = *solution ? g_strdup(solution) : NULL;
    return TRUE;
}

static char *question(const TrainTask *task)
{
    GString *out = g_string_new(task->task->problem_statement);

    kind_show_sources(task->source, FALSE, out);
    g_string_append_printf(
        out,
        "\nWrite tests that the mistake fails and right code passes. Answer "
        "with one to %u lines like\n%s(...)" ARROW
        "VALUE\nwith numbers, strings and lists%s for arguments.",
        CALLS_MAX, harness_of(task, "call"),
        !strcmp(task->task->language, "python") ? "" : " (A(1, 2) is an array and its length)");
    return g_string_free(out, FALSE);
}

/* Two verdicts are awaited: on the right files and on the faulty ones. */
typedef struct Check {
    TurnEpisode *episode;
    guint waiting;
    VerdictState right, faulty;
} Check;

static void check_end(Check *check)
{
    gboolean known = check->right != VERDICT_UNSCORABLE && check->faulty != VERDICT_UNSCORABLE;

    if (--check->waiting > 0)
        return;
    turn_end(check->episode, EPISODE_SUBMITTED,
             !known ? (double)NAN
                    : check->right == VERDICT_PASSED && check->faulty == VERDICT_FAILED);
    g_free(check);
}

static void on_right(const Verdict *verdict, gpointer user)
{
    ((Check *)user)->right = verdict->state;
    check_end(user);
}

static void on_faulty(const Verdict *verdict, gpointer user)
{
    ((Check *)user)->faulty = verdict->state;
    check_end(user);
}

static json_t *right_changes(const TrainTask *task)
{
    json_t *changes = json_object(), *text;
    const char *path;

    json_object_foreach(task->fixed->files, path, text)
    {
        if (!json_equal(text, json_object_get(task->source->files, path)))
            json_object_set(changes, path, text);
    }
    return changes;
}

static void ask(TurnEpisode *episode, json_t *row)
{
    TurnDesk *desk = episode->desk;
    g_autoptr(Task) task = task_from_json(row, &desk->error);
    g_autoptr(json_t) changes = right_changes(episode->task);
    Check *check;

    if (!task)
        return;
    check = g_new0(Check, 1);
    *check = (Check){episode, 2, VERDICT_UNSCORABLE, VERDICT_UNSCORABLE};
    if (!verdict_ask(desk->verdicts, task, changes, on_right, check, &desk->error)) {
        g_free(check);
        return;
    }
    if (!verdict_ask(desk->verdicts, task, NULL, on_faulty, check, &desk->error))
        check_end(check);
}

static void judge(TurnEpisode *episode, const char *answer)
{
    g_autofree char *block = answer_block(answer);
    g_autoptr(json_t) calls = block ? calls_of(episode->task, block) : NULL;
    g_autoptr(json_t) row = NULL;

    if (!calls) {
        episode->desk->stats->invalid++;
        turn_end(episode, EPISODE_SUBMITTED, 0);
        return;
    }
    row = json_copy(episode->task->task->json);
    json_object_set(row, "calls", calls);
    ask(episode, row);
}

const TrainKind kind_test = {
    .name = "test",
    .answers = "one to eight calls of the function with literal arguments: CALL => VALUE",
    .rewarded = "1: right code gives all the values, the faulty code does not",
    .system = "You test programs. Think about the mistake, then write tests that show it.",
    .open = open_test,
    .question = question,
    .judge = judge,
};
