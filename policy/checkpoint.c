/*
 * Checkpoints of training: written beside, renamed into place, read back whole or not at all.
 *
 * Invariants
 *  1. Reading gives the very bits that were written: unrounded weights, both moments, steps.
 *  2. A directory that does not belong to the trainer's shape is refused before anything is set.
 *
 * Not here: when to write one, and what the run remembers (env/).
 */
#include "policy/checkpoint.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "policy/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define STATE_BYTES_MAX (64u << 20)

enum { MASTER, MOMENT1, MOMENT2, PARTS };

static const char *const part_names[PARTS] = {"master", "moment1", "moment2"};

/* What the optimiser's file is written from, or read into. */
typedef struct {
    const Params *parts[PARTS];
} Optimizer;

static Optimizer optimizer_of(const Trainer *t, const RanksMoments *moments)
{
    return (Optimizer){{t->master, moments->first, moments->second}};
}

/* Tensor number `i` of the optimiser's file is part i / tensors of tensor i % tensors. */
static GArray *optimizer_plan(const ModelConfig *config)
{
    GArray *plan = g_array_new(FALSE, FALSE, sizeof(SafeTensor));
    guint tensors = tensors_count(config);

    for (guint i = 0; i < PARTS * tensors; i++) {
        TensorInfo info = tensors_info(config, i % tensors);
        SafeTensor tensor = {.dtype = TENSOR_F32, .rank = (guint8)info.rank, .count = info.count};
        char name[TENSOR_NAME_MAX];

        tensors_name(&info, name);
        tensor.name = g_strdup_printf("%s.%s", part_names[i / tensors], name);
        for (guint d = 0; d < info.rank; d++)
            tensor.dims[d] = info.dims[d];
        g_array_append_val(plan, tensor);
    }
    return plan;
}

static void plan_free(GArray *plan)
{
    for (guint i = 0; i < plan->len; i++)
        g_free(g_array_index(plan, SafeTensor, i).name);
    g_array_unref(plan);
}

static void fill(guint i, guint64 first, guint64 count, gpointer out, gpointer data)
{
    const Optimizer *o = data;
    guint tensors = tensors_count(&o->parts[MASTER]->model->config);
    const float *from = params_at(o->parts[i / tensors], i % tensors);

    memcpy(out, from + first, count * sizeof(float));
}

static gboolean optimizer_write(const char *dir, Trainer *t, GError **error)
{
    g_auto(RanksMoments) moments = {0};
    Optimizer optimizer;
    GArray *plan;
    gboolean ok;

    if (!ranks_moments(t, TRUE, &moments, error))
        return FALSE;
    optimizer = optimizer_of(t, &moments);
    plan = optimizer_plan(&t->model->config);
    ok = safetensors_write(dir, (const SafeTensor *)(gpointer)plan->data, plan->len,
                           SAFETENSORS_SHARD_BYTES, NULL, fill, &optimizer, error);
    plan_free(plan);
    return ok;
}

/* What was written beside `dir` takes its place. */
static gboolean put_in_place(const char *half, const char *dir, GError **error)
{
    return tree_remove(AT_FDCWD, dir, error) &&
           (rename(half, dir) == 0 || error_set_errno(error, errno, "%s", dir));
}

gboolean checkpoint_write_model(const char *dir, const Trainer *t, GError **error)
{
    const ModelConfig *config = &t->model->config;
    g_autoptr(Weights) weights = weights_new(config, TENSOR_F32, error);
    g_autofree char *half = g_strconcat(dir, ".half", NULL);

    if (!weights)
        return FALSE;
    for (guint i = 0; i < tensors_count(config); i++)
        memcpy(weights_at(weights, i), params_at(t->master, i),
               tensors_info(config, i).count * sizeof(float));
    return tree_remove(AT_FDCWD, half, error) && weights_save(weights, half, TENSOR_F32, error) &&
           put_in_place(half, dir, error);
}

static gboolean state_write(const char *dir, const Trainer *t, const json_t *state, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "state.json", NULL);
    g_autoptr(json_t) all = json_pack("{s:I, s:I, s:O}", "steps", (json_int_t)t->steps, "version",
                                      (json_int_t)t->model->version, "run", state);
    g_autofree char *text = json_print(all);

    return file_write_atomic(path, text, strlen(text), error);
}

/* NAME of both directories, where the first has it. */
static gboolean copy_if_there(const char *from_dir, const char *to_dir, const char *name,
                              GError **error)
{
    g_autofree char *from = g_build_filename(from_dir, name, NULL);
    g_autofree char *to = g_build_filename(to_dir, name, NULL);
    g_autofree char *contents = NULL;
    gsize len;

    return !g_file_test(from, G_FILE_TEST_EXISTS) ||
           (g_file_get_contents(from, &contents, &len, error) &&
            file_write_atomic(to, contents, len, error));
}

static gboolean tokenizer_copy(const char *from, const char *to, GError **error)
{
    static const char *const names[] = {"tokenizer.json", "merges.txt", "tokenizer_config.json"};

    for (guint i = 0; i < G_N_ELEMENTS(names); i++)
        if (!copy_if_there(from, to, names[i], error))
            return FALSE;
    return TRUE;
}

/* Everything of it into `dir`, which is new. */
static gboolean write_parts(const char *dir, Trainer *t, const json_t *state,
                            const char *tokenizer_dir, GError **error)
{
    g_autofree char *model = g_build_filename(dir, "model", NULL);
    g_autofree char *optimizer = g_build_filename(dir, "optimizer", NULL);

    if (g_mkdir_with_parents(dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", dir);
    return checkpoint_write_model(model, t, error) && tokenizer_copy(tokenizer_dir, model, error) &&
           optimizer_write(optimizer, t, error) && state_write(dir, t, state, error);
}

gboolean checkpoint_write(const char *dir, Trainer *t, const json_t *state,
                          const char *tokenizer_dir, GError **error)
{
    g_autofree char *half = g_strconcat(dir, ".half", NULL);

    g_assert(t->model->ops->real == OPS_F32);
    if (tree_remove(AT_FDCWD, half, error) && write_parts(half, t, state, tokenizer_dir, error) &&
        put_in_place(half, dir, error))
        return TRUE;
    g_prefix_error(error, "checkpoint %s: ", dir);
    return FALSE;
}

/* ---- reading ---- */

static gboolean optimizer_read(const char *dir, const Optimizer *o, GError **error)
{
    const ModelConfig *config = &o->parts[MASTER]->model->config;
    g_autoptr(Safetensors) st = safetensors_open(dir, error);
    guint tensors = tensors_count(config);
    GArray *plan;
    gboolean ok = st != NULL;

    if (!st)
        return FALSE;
    plan = optimizer_plan(config);
    for (guint pass = 0; ok && pass < 2; pass++) /* all is checked before anything is set */
        for (guint i = 0; ok && i < plan->len; i++) {
            const SafeTensor *want = &g_array_index(plan, SafeTensor, i);
            const SafeTensor *got = safetensors_find(st, want->name);

            if (!got || got->dtype != want->dtype || got->count != want->count)
                ok = error_set(error, ASSAY_ERROR_INPUT,
                               "%s: tensor %s is missing or of another shape", dir, want->name);
            else if (pass == 1)
                memcpy(params_at(o->parts[i / tensors], i % tensors), safetensors_data(st, got),
                       got->count * sizeof(float));
        }
    plan_free(plan);
    return ok;
}

static json_t *state_read(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "state.json", NULL);
    g_autoptr(GBytes) bytes = file_read(path, STATE_BYTES_MAX, error);
    json_t *all =
        bytes ? json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error) : NULL;

    if (bytes && !all)
        g_prefix_error(error, "%s: ", path);
    return all;
}

json_t *checkpoint_read(const char *dir, Trainer *t, GError **error)
{
    g_autofree char *optimizer = g_build_filename(dir, "optimizer", NULL);
    g_autoptr(json_t) all = state_read(dir, error);
    g_auto(RanksMoments) moments = {0};
    gint64 steps, version;
    Optimizer whole;

    if (!all || !json_opt_int(all, "steps", 0, G_MAXINT64, 0, &steps, error) ||
        !json_opt_int(all, "version", 1, G_MAXINT64, 1, &version, error) ||
        !ranks_moments(t, FALSE, &moments, error)) {
        g_prefix_error(error, "checkpoint %s: ", dir);
        return NULL;
    }
    whole = optimizer_of(t, &moments);
    if (!optimizer_read(optimizer, &whole, error) ||
        !ranks_restore(t, &moments, steps, (guint64)version, error)) {
        g_prefix_error(error, "checkpoint %s: ", dir);
        return NULL;
    }
    return json_incref(json_object_get(all, "run"));
}
