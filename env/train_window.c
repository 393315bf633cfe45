/*
 * When a run goes on to longer turns.
 *
 * 1. Only batches of the present window count, each once; a function of them alone, so a run that
 *    goes on from a checkpoint moves at the same update.
 */
#include "env/train_window.h"

#include "base/error.h"
#include "policy/rollout.h"

#include <math.h>

void window_init(TrainWindow *w)
{
    *w = (TrainWindow){.seen = g_array_new(FALSE, FALSE, sizeof(WindowSeen))};
}

void window_clear(TrainWindow *w)
{
    g_clear_pointer(&w->seen, g_array_unref);
}

gint64 window_tokens(const TrainConfig *c, guint at)
{
    gint64 windows[TRAIN_WINDOWS_MAX];
    guint n = train_config_windows(c, windows);

    return n == 0 ? c->rollout_tokens : windows[MIN(at, n - 1)];
}

/* ---- a batch ---- */

static int by_size(gconstpointer a, gconstpointer b)
{
    int x = *(const int *)a, y = *(const int *)b;

    return (x > y) - (x < y);
}

/* Turns are runs of sampled tokens: something is answered between two of them. */
static void add_turns(const Rollout *r, GArray *turns, double *nll)
{
    int length = 0;

    for (int i = 0; i < r->n; i++) {
        if (!r->mask[i])
            continue;
        length++;
        *nll -= (double)r->mu[i];
        if (i + 1 == r->n || !r->mask[i + 1]) {
            g_array_append_val(turns, length);
            length = 0;
        }
    }
}

WindowSeen window_measure(guint at, const GPtrArray *groups)
{
    g_autoptr(GArray) turns = g_array_new(FALSE, FALSE, sizeof(int));
    WindowSeen seen = {.window = at};
    double nll = 0, tokens = 0;

    for (guint g = 0; g < groups->len; g++) {
        const RolloutGroup *group = groups->pdata[g];

        for (guint i = 0; i < group->n; i++)
            add_turns(&group->rollouts[i], turns, &nll);
    }
    for (guint i = 0; i < turns->len; i++)
        tokens += g_array_index(turns, int, i);
    g_array_sort(turns, by_size);
    if (turns->len > 0)
        seen.p99 = g_array_index(turns, int, (turns->len - 1) * 99 / 100);
    seen.nll = tokens > 0 ? nll / tokens : 0;
    return seen;
}

/* ---- the run ---- */

/* Means over `n` batches from number `from` on. */
static WindowSeen mean_of(const GArray *seen, guint from, guint n)
{
    WindowSeen mean = {0};

    for (guint i = from; i < from + n; i++) {
        mean.nll += g_array_index(seen, WindowSeen, i).nll / n;
        mean.p99 += g_array_index(seen, WindowSeen, i).p99 / n;
    }
    return mean;
}

gboolean window_add(TrainWindow *w, const TrainConfig *c, const WindowSeen *seen)
{
    gint64 windows[TRAIN_WINDOWS_MAX];
    guint count = train_config_windows(c, windows), span = (guint)c->rollout_window_span;
    WindowSeen before, now;

    if (w->at + 1 >= count || seen->window != w->at)
        return FALSE;
    g_array_append_val(w->seen, *seen);
    if (w->seen->len > 2 * span)
        g_array_remove_index(w->seen, 0);
    if (w->seen->len < 2 * span)
        return FALSE;
    before = mean_of(w->seen, 0, span);
    now = mean_of(w->seen, span, span);
    if (fabs(exp(now.nll - before.nll) - 1) > c->rollout_window_flat ||
        now.p99 < c->rollout_window_near * (double)windows[w->at])
        return FALSE;
    g_array_set_size(w->seen, 0);
    w->at++;
    return TRUE;
}

/* ---- as JSON ---- */

json_t *window_seen_json(const WindowSeen *seen)
{
    return json_pack("[i, f, f]", (int)seen->window, seen->nll, seen->p99);
}

gboolean window_seen_read(const json_t *json, WindowSeen *seen, GError **error)
{
    const json_t *window = json_array_get(json, 0);

    if (json_array_size(json) != 3 || !json_is_integer(window) || json_integer_value(window) < 0 ||
        json_integer_value(window) >= (json_int_t)TRAIN_WINDOWS_MAX ||
        !json_is_number(json_array_get(json, 1)) || !json_is_number(json_array_get(json, 2)))
        return error_set(error, ASSAY_ERROR_INPUT, "what a batch said of its window is damaged");
    *seen = (WindowSeen){.window = (guint)json_integer_value(window),
                         .nll = json_number_value(json_array_get(json, 1)),
                         .p99 = json_number_value(json_array_get(json, 2))};
    return TRUE;
}

json_t *window_json(const TrainWindow *w)
{
    json_t *seen = json_array();

    for (guint i = 0; i < w->seen->len; i++)
        json_array_append_new(seen, window_seen_json(&g_array_index(w->seen, WindowSeen, i)));
    return json_pack("{s:i, s:o}", "at", (int)w->at, "seen", seen);
}

gboolean window_read(TrainWindow *w, const json_t *json, GError **error)
{
    gint64 at = 0;
    size_t i;
    json_t *value;

    if (!json)
        return TRUE;
    if (!json_opt_int(json, "at", 0, TRAIN_WINDOWS_MAX - 1, 0, &at, error))
        return FALSE;
    w->at = (guint)at;
    json_array_foreach(json_object_get(json, "seen"), i, value)
    {
        WindowSeen seen;

        if (!window_seen_read(value, &seen, error))
            return FALSE;
        g_array_append_val(w->seen, seen);
    }
    return TRUE;
}
