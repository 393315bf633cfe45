/*
 * Rollouts to JSON lines and back, with every bit of their numbers.
 *
 * 1. What is read is checked: lengths agree, ids are whole numbers, masks are 0 and 1.
 */
#include "env/train_record.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/forward.h"

#include <math.h>
#include <string.h>

#define ROUTES_MAX 65536 /* layers K */

static json_t *ids_json(const int *ids, int n)
{
    json_t *list = json_array();

    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* JSON has no NaN and no infinity: null. */
static json_t *number_json(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *numbers_json(const float *values, int n)
{
    json_t *list = json_array();

    for (int i = 0; i < n; i++)
        json_array_append_new(list, number_json((double)values[i]));
    return list;
}

/* The rows that are known, a byte for each expert, base64. */
static json_t *routes_json(const guint16 *experts, int n, guint width)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autofree char *text = NULL;

    for (gsize i = 0; i < (gsize)n * width && experts[i] != FORWARD_OWN; i++) {
        guint8 expert = (guint8)experts[i];

        g_byte_array_append(bytes, &expert, 1);
    }
    text = g_base64_encode(bytes->data, bytes->len);
    return json_string(text);
}

static json_t *rollout_json(const Rollout *r, guint width)
{
    g_autofree char *mask = g_malloc((gsize)r->n + 1);
    json_t *json;

    for (int i = 0; i < r->n; i++)
        mask[i] = r->mask[i] ? '1' : '0';
    mask[r->n] = '\0';
    json = json_pack("{s:o, s:s, s:o, s:o, s:o, s:b, s:b}", "ids", ids_json(r->ids, r->n), "mask",
                     mask, "logprobs", numbers_json(r->mu, r->n), "reward", number_json(r->reward),
                     "advantage", number_json(r->advantage), "unscorable", r->unscorable, "no_loss",
                     r->no_loss);
    if (r->anchor)
        json_object_set_new(json, "anchor", numbers_json(r->anchor, r->n));
    if (r->ref)
        json_object_set_new(json, "ref", numbers_json(r->ref, r->n));
    if (width > 0)
        json_object_set_new(json, "experts", routes_json(r->experts, r->n, width));
    return json;
}

/* The turns: stretches of ids that the policy sampled, or did not. */
static json_t *turns_json(const Tokenizer *tokenizer, const Rollout *r)
{
    json_t *turns = json_array();

    for (int from = 0, to = 0; from < r->n; from = to) {
        g_autoptr(GString) text = g_string_new(NULL);
        g_autofree char *valid = NULL;

        while (to < r->n && r->mask[to] == r->mask[from])
            to++;
        tokenizer_decode(tokenizer, r->ids + from, (gsize)(to - from), TOKENS_SPECIALS, text, NULL);
        valid = g_utf8_make_valid(text->str, (gssize)text->len);
        json_array_append_new(
            turns, json_pack("{s:s, s:s}", "by", r->mask[from] ? "policy" : "env", "text", valid));
    }
    return turns;
}

static json_t *group_json(const TrainTask *task, const RolloutGroup *group)
{
    json_t *rollouts = json_array(), *json;

    for (guint i = 0; i < group->n; i++)
        json_array_append_new(rollouts, rollout_json(&group->rollouts[i], group->width));
    json = json_pack("{s:s, s:o, s:o, s:b}", "task", task ? task->task->instance_id : "", "prompt",
                     ids_json(group->prompt, group->prompt_n), "rollouts", rollouts, "skipped",
                     group->skipped);
    if (group->width > 0) {
        json_object_set_new(json, "width", json_integer(group->width));
        json_object_set_new(json, "experts",
                            routes_json(group->experts, group->prompt_n, group->width));
    }
    return json;
}

json_t *record_json(TrainTask *const *tasks, const GPtrArray *groups)
{
    json_t *list = json_array();

    for (guint g = 0; g < groups->len; g++)
        json_array_append_new(list, group_json(tasks ? tasks[g] : NULL, groups->pdata[g]));
    return list;
}

gboolean record_write(const char *path, TrainTask *const *tasks, const GPtrArray *groups,
                      const Tokenizer *tokenizer, GError **error)
{
    g_autoptr(json_t) list = record_json(tasks, groups);
    g_autoptr(GString) out = g_string_new(NULL);
    size_t i;
    json_t *group;

    json_array_foreach(list, i, group)
    {
        const RolloutGroup *of = groups->pdata[i];

        for (guint k = 0; tokenizer && k < of->n; k++)
            json_object_set_new(json_array_get(json_object_get(group, "rollouts"), k), "turns",
                                turns_json(tokenizer, &of->rollouts[k]));
        g_autofree char *line = json_print(group);

        g_string_append_printf(out, "%s\n", line);
    }
    return file_write_atomic(path, out->str, out->len, error);
}

/* ---- reading ---- */

static GArray *ids_read(const json_t *list)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int));
    size_t i;
    json_t *value;

    json_array_foreach(list, i, value)
    {
        int id = (int)json_integer_value(value);

        if (!json_is_integer(value) || json_integer_value(value) != id || id < 0)
            return NULL;
        g_array_append_val(ids, id);
    }
    return json_is_array(list) ? g_steal_pointer(&ids) : NULL;
}

static double number_read(const json_t *json)
{
    return json_is_number(json) ? json_number_value(json) : (double)NAN;
}

/* A list that may not be there; of another length it is damage. */
static gboolean numbers_read(const json_t *json, const char *name, int n, float **ret)
{
    const json_t *list = json_object_get(json, name);

    if (!list)
        return TRUE;
    if (json_array_size(list) != (gsize)n)
        return FALSE;
    *ret = g_new(float, n);
    for (int i = 0; i < n; i++)
        (*ret)[i] = (float)number_read(json_array_get(list, (gsize)i));
    return TRUE;
}

static gboolean rollout_read(Rollout *rollout, const json_t *json)
{
    g_autoptr(GArray) ids = ids_read(json_object_get(json, "ids"));
    const char *mask = json_string_value(json_object_get(json, "mask"));
    const json_t *logprobs = json_object_get(json, "logprobs");

    if (!ids || !mask || strlen(mask) != ids->len || strspn(mask, "01") != ids->len ||
        json_array_size(logprobs) != ids->len)
        return FALSE;
    rollout_fill(rollout, (const int *)(gpointer)ids->data, NULL, NULL, (int)ids->len);
    for (guint i = 0; i < ids->len; i++) {
        rollout->mask[i] = mask[i] == '1';
        rollout->mu[i] = (float)number_read(json_array_get(logprobs, i));
    }
    rollout->reward = number_read(json_object_get(json, "reward"));
    rollout->advantage = number_read(json_object_get(json, "advantage"));
    rollout->unscorable = json_is_true(json_object_get(json, "unscorable"));
    rollout->no_loss = json_is_true(json_object_get(json, "no_loss"));
    return numbers_read(json, "anchor", rollout->n, &rollout->anchor) &&
           numbers_read(json, "ref", rollout->n, &rollout->ref);
}

static gboolean routes_read(const json_t *json, guint16 *experts, int n, guint width)
{
    const char *text = json_string_value(json_object_get(json, "experts"));
    g_autofree guchar *bytes = NULL;
    gsize len = 0;

    if (!text)
        return FALSE;
    bytes = g_base64_decode(text, &len);
    if (len % width != 0 || len > (gsize)n * width)
        return FALSE;
    for (gsize i = 0; i < len; i++)
        experts[i] = bytes[i];
    return TRUE;
}

/* Where experts were recorded, they were for all. */
static gboolean group_routes_read(RolloutGroup *group, const json_t *json)
{
    const json_t *rollouts = json_object_get(json, "rollouts"),
                 *width = json_object_get(json, "width");
    json_int_t number = json_integer_value(width);

    if (!width)
        return TRUE;
    if (number < 1 || number > ROUTES_MAX)
        return FALSE;
    rollout_group_routes(group, (guint)number);
    for (guint i = 0; i < group->n; i++)
        if (!routes_read(json_array_get(rollouts, i), group->rollouts[i].experts,
                         group->rollouts[i].n, group->width))
            return FALSE;
    return routes_read(json, group->experts, group->prompt_n, group->width);
}

static RolloutGroup *group_read(const json_t *json)
{
    g_autoptr(GArray) prompt = ids_read(json_object_get(json, "prompt"));
    const json_t *rollouts = json_object_get(json, "rollouts");
    g_autoptr(RolloutGroup) group = NULL;

    if (!prompt || prompt->len == 0 || !json_is_array(rollouts))
        return NULL;
    group = rollout_group_new((const int *)(gpointer)prompt->data, (int)prompt->len,
                              (guint)json_array_size(rollouts));
    group->skipped = json_is_true(json_object_get(json, "skipped"));
    for (guint i = 0; i < group->n; i++)
        if (!rollout_read(&group->rollouts[i], json_array_get(rollouts, i)))
            return NULL;
    return group_routes_read(group, json) ? g_steal_pointer(&group) : NULL;
}

GPtrArray *record_groups(const json_t *list, GStrv *ret_tasks, GError **error)
{
    g_autoptr(GPtrArray) groups =
        g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    g_autoptr(GStrvBuilder) names = g_strv_builder_new();
    size_t i;
    json_t *json;

    json_array_foreach(list, i, json)
    {
        const char *name = json_string_value(json_object_get(json, "task"));
        RolloutGroup *group = name ? group_read(json) : NULL;

        if (!group) {
            error_set(error, ASSAY_ERROR_INPUT, "line %u is no group of rollouts", (guint)i + 1);
            return NULL;
        }
        g_ptr_array_add(groups, group);
        g_strv_builder_add(names, name);
    }
    if (ret_tasks)
        *ret_tasks = g_strv_builder_end(names);
    return g_steal_pointer(&groups);
}

GPtrArray *record_read(const char *path, GStrv *ret_tasks, GError **error)
{
    g_autoptr(GBytes) bytes = file_read(path, RECORD_BYTES_MAX, error);
    g_autoptr(json_t) list = json_array();
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    GPtrArray *groups;

    if (!bytes)
        return NULL;
    text = g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    lines = g_strsplit(text, "\n", -1);
    for (guint i = 0; lines[i] && *lines[i]; i++) {
        json_t *line = json_parse(lines[i], strlen(lines[i]), NULL);

        json_array_append_new(list, line ? line : json_null());
    }
    groups = record_groups(list, ret_tasks, error);
    if (!groups)
        g_prefix_error(error, "%s: ", path);
    return groups;
}
