/*
 * Row helpers: the words of the enums and freeing.
 *
 * Invariant: a number that is stored keeps its word for ever; the tables are those of rows.h.
 * Not here: SQL (store_*.c) and the JSON of the API (env/).
 */
#include "db/rows.h"

#define ROWS_WORD(name, number, text) [number] = text,
static const char *const grade_states[] = {GRADE_STATES(ROWS_WORD)};
static const char *const verdicts[] = {VERDICTS(ROWS_WORD)};
static const char *const sweep_states[] = {SWEEP_STATES(ROWS_WORD)};
static const char *const task_validities[] = {TASK_VALIDITIES(ROWS_WORD)};
#undef ROWS_WORD

static const char *word_of(const char *const *words, guint n, guint number)
{
    return number < n ? words[number] : "?";
}

static gboolean number_of(const char *const *words, guint n, const char *text, guint *ret)
{
    for (guint i = 0; i < n; i++) {
        if (g_strcmp0(words[i], text) == 0) {
            *ret = i;
            return TRUE;
        }
    }
    return FALSE;
}

const char *grade_state_str(GradeState state)
{
    return word_of(grade_states, G_N_ELEMENTS(grade_states), state);
}

const char *verdict_str(Verdict verdict)
{
    return word_of(verdicts, G_N_ELEMENTS(verdicts), verdict);
}

const char *sweep_state_str(SweepState state)
{
    return word_of(sweep_states, G_N_ELEMENTS(sweep_states), state);
}

const char *task_validity_str(TaskValidity validity)
{
    return word_of(task_validities, G_N_ELEMENTS(task_validities), validity);
}

gboolean grade_state_from_str(const char *text, GradeState *ret)
{
    guint number;
    if (!number_of(grade_states, G_N_ELEMENTS(grade_states), text, &number))
        return FALSE;
    *ret = (GradeState)number;
    return TRUE;
}

gboolean verdict_from_str(const char *text, Verdict *ret)
{
    guint number;
    if (!number_of(verdicts, G_N_ELEMENTS(verdicts), text, &number))
        return FALSE;
    *ret = (Verdict)number;
    return TRUE;
}

void task_row_free(TaskRow *row)
{
    if (row == NULL)
        return;
    g_free(row->public_id);
    g_free(row->dataset);
    g_free(row->instance_id);
    g_free(row->repo);
    g_free(row->base_commit);
    g_free(row->language);
    g_free(row->content_sha256);
    g_free(row->spec);
    g_free(row);
}

void grade_row_free(GradeRow *row)
{
    if (row == NULL)
        return;
    g_free(row->public_id);
    g_free(row->key);
    g_free(row->patch_sha);
    g_free(row->mode);
    g_free(row->request);
    g_free(row->error_code);
    g_free(row->result);
    g_free(row->statuses);
    g_free(row->dataset);
    g_free(row->instance_id);
    g_free(row);
}

void sweep_row_free(SweepRow *row)
{
    if (row == NULL)
        return;
    g_free(row->public_id);
    g_free(row->name);
    g_free(row->dataset);
    g_free(row->mode);
    g_free(row->options);
    g_free(row);
}

void sweep_item_row_free(SweepItemRow *row)
{
    if (row == NULL)
        return;
    g_free(row->custom_id);
    g_free(row->model);
    grade_row_free(row->grade);
    g_free(row);
}

void event_row_free(EventRow *row)
{
    if (row == NULL)
        return;
    g_free(row->type);
    g_free(row->subject);
    g_free(row->body);
    g_free(row);
}

void episode_row_free(EpisodeRow *row)
{
    if (row == NULL)
        return;
    char *texts[] = {row->public_id, row->seed,    row->limits,      row->parent,
                     row->why,       row->dataset, row->instance_id, row->grade};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
        g_free(texts[i]);
    g_free(row);
}
