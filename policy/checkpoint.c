/*
 * Checkpoints of training: written beside, renamed into place, read back whole or not at all.
 *
 * Invariants
 *  1. Reading gives the very bits that were written: unrounded weights, both moments, steps.
 *  2. A directory that does not belong to the trainer's shape is refused before anything is set.
 *  3. Tensors are whole, whatever the ranks have of them; one is in memory at a time.
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

static const struct {
    const char *name;
    TrainerKept kept;
} parts[] = {{"master", KEPT_WEIGHTS}, {"moment1", KEPT_MOMENT1}, {"moment2", KEPT_MOMENT2}};

/* What files are written from: the tensor that was asked for last. */
typedef struct {
    Trainer *trainer;
    guint got; /* its number in the file, plus 1; 0: none yet */
    float *rows;
    GError *error; /* ranks that failed: the file goes on with zeros and is thrown away */
} Writing;

/* Tensor number `i` of the optimiser's file is part i / tensors of tensor i % tensors. */
static GArray *optimizer_plan(const ModelConfig *config)
{
    GArray *plan = g_array_new(FALSE, FALSE, sizeof(SafeTensor));
    guint tensors = tensors_count(config);

    for (guint i = 0; i < G_N_ELEMENTS(parts) * tensors; i++) {
        TensorInfo info = tensors_info(config, i % tensors);
        SafeTensor tensor = {.dtype = TENSOR_F32, .rank = (guint8)info.rank, .count = info.count};
        char name[TENSOR_NAME_MAX];

        tensors_name(&info, name);
        tensor.name = g_strdup_printf("%s.%s", parts[i / tensors].name, name);
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
    Writing *w = data;
    const ModelConfig *config = &w->trainer->whole;
    guint tensors = tensors_count(config), tensor = i % tensors;

    if (w->got != i + 1) {
        w->rows = g_realloc_n(w->rows, tensors_info(config, tensor).count, sizeof *w->rows);
        memset(w->rows, 0, tensors_info(config, tensor).count * sizeof *w->rows);
        if (!w->error)
            ranks_get(w->trainer, parts[i / tensors].kept, tensor, w->rows, &w->error);
        w->got = i + 1;
    }
    memcpy(out, w->rows + first, count * sizeof *w->rows);
}

/* Tensors of the plan, asked of the ranks one by one. */
static gboolean tensors_write(const char *dir, Trainer *t, const GArray *plan, GError **error)
{
    Writing writing = {.trainer = t};
    gboolean ok = safetensors_write(dir, (const SafeTensor *)(gpointer)plan->data, plan->len,
                                    SAFETENSORS_SHARD_BYTES, NULL, fill, &writing, error);

    g_free(writing.rows);
    if (ok && writing.error) {
        g_propagate_error(error, writing.error);
        return FALSE;
    }
    g_clear_error(&writing.error);
    return ok;
}

static gboolean optimizer_write(const char *dir, Trainer *t, GError **error)
{
    GArray *plan = optimizer_plan(&t->whole);
    gboolean ok = tensors_write(dir, t, plan, error);

    plan_free(plan);
    return ok;
}

/* What was written beside `dir` takes its place. */
static gboolean put_in_place(const char *half, const char *dir, GError **error)
{
    return tree_remove(AT_FDCWD, dir, error) &&
           (rename(half, dir) == 0 || error_set_errno(error, errno, "%s", dir));
}

gboolean checkpoint_write_model(const char *dir, Trainer *t, GError **error)
{
    g_autoptr(GArray) plan = tensors_plan(&t->whole, TENSOR_F32);
    g_autofree char *half = g_strconcat(dir, ".half", NULL);

    return tree_remove(AT_FDCWD, half, error) && tensors_write(half, t, plan, error) &&
           model_config_write(&t->whole, half, error) && put_in_place(half, dir, error);
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

static gboolean optimizer_check(const Safetensors *st, const GArray *plan, GError **error)
{
    for (guint i = 0; i < plan->len; i++) {
        const SafeTensor *want = &g_array_index(plan, SafeTensor, i);
        const SafeTensor *got = safetensors_find(st, want->name);

        if (!got || got->dtype != want->dtype || got->count != want->count)
            return error_set(error, ASSAY_ERROR_INPUT, "tensor %s is missing or of another shape",
                             want->name);
    }
    return TRUE;
}

static gboolean optimizer_read(const char *dir, Trainer *t, GError **error)
{
    g_autoptr(Safetensors) st = safetensors_open(dir, error);
    guint tensors = tensors_count(&t->whole);
    GArray *plan;
    gboolean ok;

    if (!st)
        return FALSE;
    plan = optimizer_plan(&t->whole);
    ok = optimizer_check(st, plan, error); /* all of it, before anything is set */
    if (!ok)
        g_prefix_error(error, "%s: ", dir);
    for (guint i = 0; ok && i < plan->len; i++) {
        const SafeTensor *got = safetensors_find(st, g_array_index(plan, SafeTensor, i).name);

        ok = ranks_put(t, parts[i / tensors].kept, i % tensors, safetensors_data(st, got), error);
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
    gint64 steps, version;

    if (!all || !json_opt_int(all, "steps", 0, G_MAXINT64, 0, &steps, error) ||
        !json_opt_int(all, "version", 1, G_MAXINT64, 1, &version, error) ||
        !optimizer_read(optimizer, t, error) || !ranks_restore(t, steps, (guint64)version, error)) {
        g_prefix_error(error, "checkpoint %s: ", dir);
        return NULL;
    }
    return json_incref(json_object_get(all, "run"));
}

/* Every tensor of a model directory to the ranks. */
static gboolean model_put(const Safetensors *st, Trainer *t, TrainerKept kept, GError **error)
{
    OpsReal real = t->model->ops->real;

    for (guint i = 0; i < tensors_count(&t->whole); i++) {
        TensorInfo info = tensors_info(&t->whole, i);
        g_autofree void *rows = g_malloc(info.count * ops_real_size(real));

        weights_read(st, &info, real == OPS_F64 ? TENSOR_F64 : TENSOR_F32, rows);
        if (!ranks_put(t, kept, i, rows, error))
            return FALSE;
    }
    return TRUE;
}

static Safetensors *model_files(const char *dir, const Trainer *t, GError **error)
{
    g_autoptr(Safetensors) st = safetensors_open(dir, error);

    if (st && tensors_check(&t->whole, st, error))
        return g_steal_pointer(&st);
    g_prefix_error(error, "%s: ", dir);
    return NULL;
}

gboolean checkpoint_load(const char *dir, Trainer *t, GError **error)
{
    g_autoptr(Safetensors) st = model_files(dir, t, error);

    return st && model_put(st, t, KEPT_WEIGHTS, error) &&
           ranks_restore(t, t->steps, t->model->version, error);
}

gboolean checkpoint_reference(const char *dir, Trainer *t, GError **error)
{
    g_autoptr(Safetensors) st = model_files(dir, t, error);

    return st && ranks_reference(t, error) && model_put(st, t, KEPT_REFERENCE, error);
}
