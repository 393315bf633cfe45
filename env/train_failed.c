/*
 * An update that could not be made: kept with all that it was made of, and made again.
 *
 *     DIR/failed/NNNNNN/config.conf, groups.jsonl, checkpoint/, why
 *
 * 1. The weights and moments that are kept are those before the failed step: it changed none.
 * 2. What is kept is enough: no task, box or run is asked when it is tried again.
 *
 * Not here: whether an update may be made (policy/trainer.c, train_run.c).
 */
#include "env/train.h"
#include "env/backend.h"

#include "env/train_record.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/checkpoint.h"

#include <errno.h>
#include <string.h>

static const char *const phases[] = {[TRAIN_WARMUP] = "warmup", [TRAIN_RL] = "rl"};

static gboolean text_write(const char *dir, const char *name, const char *text, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);

    return file_write_atomic(path, text, strlen(text), error);
}

static gboolean keep(const Train *t, const char *dir, const TrainMinibatch *m, const char *why,
                     GError **error)
{
    g_autofree char *groups_path = g_build_filename(dir, "groups.jsonl", NULL);
    g_autofree char *checkpoint = g_build_filename(dir, "checkpoint", NULL);
    g_autofree char *tokenizer = g_build_filename(t->dir, "tokenizer", NULL);
    g_autofree char *config = train_config_text(t->config);
    g_autoptr(json_t) state =
        json_pack("{s:s, s:I, s:I, s:f}", "phase", phases[m->phase], "warmup",
                  (json_int_t)t->warmup, "update", (json_int_t)t->update, "lr", m->lr);
    g_autoptr(GPtrArray) groups = g_ptr_array_new();

    for (guint i = 0; i < m->n; i++)
        g_ptr_array_add(groups, m->groups[i]);
    if (g_mkdir_with_parents(dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", dir);
    return text_write(dir, "config.conf", config, error) && text_write(dir, "why", why, error) &&
           record_write(groups_path, m->tasks, groups, t->tokenizer, error) &&
           checkpoint_write(checkpoint, t->trainer, state, tokenizer, error);
}

gboolean train_failed(const Train *t, const TrainMinibatch *m, GError *why, GError **error)
{
    g_autofree char *name = g_strdup_printf("%06" G_GINT64_FORMAT, t->warmup + t->update);
    g_autofree char *dir = g_build_filename(t->dir, "failed", name, NULL);
    g_autoptr(GError) unkept = NULL;

    if (keep(t, dir, m, why->message, &unkept))
        g_prefix_error(&why, "%s %s: ", "no update was made; assay train retry", dir);
    else
        g_prefix_error(&why, "no update was made, nor kept (%s): ", unkept->message);
    g_propagate_error(error, why);
    return FALSE;
}

gboolean train_retry(const char *dir, TrainerStats *stats, GError **error)
{
    g_autofree char *conf = g_build_filename(dir, "config.conf", NULL);
    g_autofree char *path = g_build_filename(dir, "groups.jsonl", NULL);
    g_autofree char *checkpoint = g_build_filename(dir, "checkpoint", NULL);
    g_autofree char *model_dir = g_build_filename(checkpoint, "model", NULL);
    g_autoptr(TrainConfig) c = train_config_load(conf, NULL, error);
    g_autoptr(Model) model = c ? model_load(backend_ops(), model_dir, train_config_weights(c),
                                            (guint)c->model_chunk, error)
                               : NULL;
    const TrainerRanks ranks = {.shares = c ? (guint)c->optim_shares : 0}; /* the same sums */
    g_autoptr(Trainer) trainer =
        model ? trainer_new_ranks(model, (int)c->optim_rows,
                                  c->optim_recompute ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL, &ranks,
                                  error)
              : NULL;
    g_autoptr(json_t) state = trainer ? checkpoint_read(checkpoint, trainer, error) : NULL;
    g_autoptr(GPtrArray) groups = state ? record_read(path, NULL, error) : NULL;
    gboolean warmup;
    NormOptions norm;
    TrainerLoss loss;
    TrainerStep step;

    if (!groups)
        return FALSE;
    warmup = g_strcmp0(json_string_value(json_object_get(state, "phase")), phases[TRAIN_RL]) != 0;
    loss = train_loss(c, warmup ? TRAIN_WARMUP : TRAIN_RL, &norm);
    step = train_step(c, json_number_value(json_object_get(state, "lr")));
    normalise((RolloutGroup **)groups->pdata, groups->len, &norm);
    return trainer_gradients(trainer, (RolloutGroup **)groups->pdata, groups->len, &loss, NULL,
                             NULL, stats, error) &&
           trainer_step(trainer, &step, stats, error);
}
