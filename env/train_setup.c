/*
 * A run's beginnings and ends: vocabulary, model, optimiser, checkpoints.
 *
 * 1. A new run is a function of its configuration: vocabulary, weights and all that is drawn.
 * 2. A run that goes on reads its last complete checkpoint; what came after it is done again.
 * 3. A run's configuration cannot change under it, but for how long it goes on.
 *
 * Not here: what a run does (train_run.c).
 */
#include "env/train.h"
#include "env/backend.h"

#include "env/train_demos.h"
#include "env/train_plan.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "policy/bench.h"
#include "policy/checkpoint.h"
#include "policy/init.h"
#include "policy/token_train.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#define CHECKPOINTS_KEPT 3u

/* ---- vocabulary ---- */

/* Under its name only when complete. */
static gboolean tokenizer_keep(const Tokenizer *tokenizer, const char *dir, GError **error)
{
    g_autofree char *half = g_strconcat(dir, ".half", NULL);

    if (!tree_remove(AT_FDCWD, half, error))
        return FALSE;
    if (g_mkdir_with_parents(half, 0755) != 0)
        return error_set_errno(error, errno, "%s", half);
    if (!tokenizer_save(tokenizer, half, error))
        return FALSE;
    return rename(half, dir) == 0 || error_set_errno(error, errno, "%s", dir);
}

/* Trained on the tasks to learn from, or read from where the run or the given model keeps it. */
static Tokenizer *tokenizer_for(const Train *t, const char *kept, GError **error)
{
    g_autoptr(TokenTrainer) trainer = NULL;
    g_autoptr(GString) corpus = NULL;
    Tokenizer *tokenizer;

    if (g_file_test(kept, G_FILE_TEST_IS_DIR))
        return tokenizer_load(kept, error);
    if (*t->config->model_path) {
        tokenizer = tokenizer_load(t->config->model_path, error);
    } else {
        trainer = token_trainer_new();
        corpus = g_string_new(NULL);
        if (!demos_corpus(t->roller.dialect, t->demos, corpus, error) ||
            !token_trainer_add(trainer, corpus->str, corpus->len, error))
            return NULL;
        tokenizer = token_trainer_finish(trainer, (guint)t->config->model_vocab, error);
    }
    if (tokenizer && !tokenizer_keep(tokenizer, kept, error))
        g_clear_pointer(&tokenizer, tokenizer_free);
    return tokenizer;
}

/* ---- model ---- */

static Model *model_for(const Train *t, GError **error)
{
    WeightFormat format = train_config_weights(t->config);
    g_autoptr(Weights) weights = NULL;
    ModelConfig config;

    if (!train_holds_whole(t->config)) { /* its weights go to the ranks, one by one */
        if (!model_config_read(t->config->model_path, &config, error))
            return NULL;
        config.chunk = (guint32)t->config->model_chunk;
        return model_shape(backend_ops(), &config, format);
    }
    if (*t->config->model_path)
        return model_load(backend_ops(), t->config->model_path, format,
                          (guint)t->config->model_chunk, error);
    if (!train_shape(t->config, (guint)tokenizer_size(t->tokenizer), &config, error) ||
        !(weights = init_weights(&config, (guint64)t->config->run_seed, TENSOR_F32, error)))
        return NULL;
    return model_from_weights(backend_ops(), weights, format, 0, error);
}

/* ---- checkpoints ---- */

static int by_name(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of complete checkpoints, oldest first. */
static GPtrArray *checkpoints_of(const char *dir)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) entries = g_dir_open(dir, 0, NULL);
    const char *name;

    while (entries && (name = g_dir_read_name(entries)))
        if (strspn(name, "0123456789") == strlen(name))
            g_ptr_array_add(names, g_strdup(name));
    g_ptr_array_sort(names, by_name);
    return names;
}

static json_t *rates_of(const Train *t)
{
    json_t *rates = json_array();

    for (guint i = 0; i < t->tasks->len; i++)
        json_array_append_new(rates, json_real(((TrainTask *)t->tasks->pdata[i])->rate));
    return rates;
}

gboolean train_checkpoint(Train *t, GError **error)
{
    g_autofree char *all = g_build_filename(t->dir, "checkpoints", NULL);
    g_autofree char *name = g_strdup_printf("%06" G_GINT64_FORMAT, t->warmup + t->update);
    g_autofree char *dir = g_build_filename(all, name, NULL);
    g_autofree char *tokenizer = g_build_filename(t->dir, "tokenizer", NULL);
    json_t *pending = t->pending ? train_batch_json(t->pending) : json_null();
    g_autoptr(json_t) state = json_pack(
        "{s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "warmup", (json_int_t)t->warmup, "update",
        (json_int_t)t->update, "episodes", (json_int_t)t->episodes, "tokens", (json_int_t)t->tokens,
        "rates", rates_of(t), "window", window_json(&t->window), "pending", pending);
    g_autoptr(GPtrArray) names = NULL;

    if (!checkpoint_write(dir, t->trainer, state, tokenizer, error))
        return FALSE;
    names = checkpoints_of(all);
    for (guint i = 0; i + CHECKPOINTS_KEPT < names->len; i++) {
        g_autofree char *old = g_build_filename(all, names->pdata[i], NULL);

        if (!tree_remove(AT_FDCWD, old, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean resume(Train *t, GError **error)
{
    g_autofree char *all = g_build_filename(t->dir, "checkpoints", NULL);
    g_autoptr(GPtrArray) names = checkpoints_of(all);
    g_autofree char *dir = NULL;
    g_autoptr(json_t) state = NULL;
    const json_t *rates;

    if (names->len == 0)
        return TRUE;
    dir = g_build_filename(all, names->pdata[names->len - 1], NULL);
    if (!(state = checkpoint_read(dir, t->trainer, error)) ||
        !json_opt_int(state, "warmup", 0, G_MAXINT32, 0, &t->warmup, error) ||
        !json_opt_int(state, "update", 0, G_MAXINT32, 0, &t->update, error) ||
        !json_opt_int(state, "episodes", 0, G_MAXINT64, 0, &t->episodes, error) ||
        !json_opt_int(state, "tokens", 0, G_MAXINT64, 0, &t->tokens, error) ||
        !window_read(&t->window, json_object_get(state, "window"), error))
        return FALSE;
    rates = json_object_get(state, "rates");
    if (json_array_size(rates) != t->tasks->len)
        return error_set(error, ASSAY_ERROR_CONFLICT,
                         "%s: made with %" G_GSIZE_FORMAT " tasks, there are %u", dir,
                         json_array_size(rates), t->tasks->len);
    for (guint i = 0; i < t->tasks->len; i++)
        ((TrainTask *)t->tasks->pdata[i])->rate = json_number_value(json_array_get(rates, i));
    if (json_is_object(json_object_get(state, "pending")))
        t->pending = train_batch_read(t, json_object_get(state, "pending"), error);
    return t->pending || !json_is_object(json_object_get(state, "pending"));
}

gboolean train_reference(Train *t, GError **error)
{
    g_autofree char *dir = g_build_filename(t->dir, "reference", NULL);

    if (!strcmp(t->config->loss_kl, "none"))
        return TRUE;
    return (g_file_test(dir, G_FILE_TEST_IS_DIR) ||
            checkpoint_write_model(dir, t->trainer, error)) &&
           checkpoint_reference(dir, t->trainer, error);
}

/* ---- the run's directory ---- */

/* Keys that may differ between a run and its continuation. */
static gboolean may_change(const char *name)
{
    static const char *const names[] = {"run.updates",
                                        "run.checkpoint_every",
                                        "run.threads",
                                        "run.ranks_wait_s",
                                        "ranks.tp",
                                        "ranks.ep",
                                        "ranks.sp",
                                        "run.dir",
                                        "eval.every",
                                        "eval.samples",
                                        "eval.tasks",
                                        "eval.sets",
                                        "optim.rows",
                                        "optim.recompute",
                                        "rollout.server",
                                        "rollout.server_key",
                                        "rollout.server_flight",
                                        "rollout.server_attempts",
                                        "rollout.server_wait_s",
                                        NULL};

    return g_strv_contains(names, name);
}

/* A key that the run was begun without is one that had no name yet: what it does was not done. */
static gboolean same_config(const char *path, const char *text, GError **error)
{
    g_autoptr(GKeyFile) was = g_key_file_new(), is = g_key_file_new(), fresh = g_key_file_new();
    g_autoptr(TrainConfig) defaults = train_config_load(NULL, NULL, error);
    g_autofree char *standard = defaults ? train_config_text(defaults) : NULL;

    if (!defaults ||
        !g_key_file_load_from_data(fresh, standard, strlen(standard), G_KEY_FILE_NONE, error) ||
        !g_key_file_load_from_file(was, path, G_KEY_FILE_NONE, error) ||
        !g_key_file_load_from_data(is, text, strlen(text), G_KEY_FILE_NONE, error))
        return FALSE;
    for (const TrainKey *key = train_keys; key->name; key++) {
        g_autofree char *before = train_key_value(was, key), *now = train_key_value(is, key);

        if (!before)
            before = train_key_value(fresh, key);
        if (!may_change(key->name) && g_strcmp0(before, now) != 0)
            return error_set(error, ASSAY_ERROR_CONFLICT,
                             "%s: the run was begun with %s = %s, now it is %s", path, key->name,
                             before, now);
    }
    return TRUE;
}

static gboolean keep_config(const Train *t, GError **error)
{
    g_autofree char *path = g_build_filename(t->dir, "config.conf", NULL);
    g_autofree char *text = train_config_text(t->config);

    if (g_mkdir_with_parents(t->dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", t->dir);
    if (g_file_test(path, G_FILE_TEST_EXISTS) && !same_config(path, text, error))
        return FALSE;
    return file_write_atomic(path, text, strlen(text), error);
}

static gboolean read_demos(Train *t, GError **error)
{
    const char *path = t->config->tasks_warmup;

    t->demos =
        *path ? train_tasks_read(path, 0, TRAIN_TO_IMITATE, error) : g_ptr_array_ref(t->tasks);
    return t->demos != NULL;
}

static gboolean read_canaries(Train *t, GError **error)
{
    const char *path = t->config->tasks_canaries;

    t->canaries = *path ? train_tasks_read(path, 0, TRAIN_TO_ALARM, error) : NULL;
    return t->canaries || !*path;
}

static gboolean read_sets(Train *t, GError **error)
{
    g_auto(GStrv) sets = g_strsplit(t->config->eval_sets, ",", -1);

    for (guint i = 0; sets[i]; i++) {
        char *name = g_strstrip(sets[i]), *equals = strchr(name, '=');
        TrainSet set;

        if (!*name)
            continue;
        if (!equals)
            return error_set(error, ASSAY_ERROR_INPUT, "eval.sets: %s is not NAME=FILE", name);
        set.name = g_strndup(name, equals - name);
        set.tasks =
            train_tasks_read(equals + 1, (guint)t->config->eval_tasks, TRAIN_TO_GRADE, error);
        g_array_append_val(t->sets, set);
        if (!set.tasks)
            return FALSE;
    }
    return TRUE;
}

static gboolean encode_all(Train *t, GError **error)
{
    const TrainConfig *c = t->config;
    const TrainDialect *dialect = t->roller.dialect;
    gboolean in_advance = dialect->answer_rows > 0; /* there must be room for every turn */
    gint64 turns = in_advance ? c->rollout_turns : 1;
    const TrainPrompts how = {dialect, t->tokenizer,
                              (in_advance ? c->optim_rows : c->rollout_context) -
                                  turns * (c->rollout_tokens + dialect->answer_rows),
                              c->tasks_shown};

    if (!train_tasks_encode(t->tasks, &how, error) ||
        (t->demos != t->tasks && !train_tasks_encode(t->demos, &how, error)) ||
        (t->canaries && !train_tasks_encode(t->canaries, &how, error)))
        return FALSE;
    for (guint i = 0; i < t->sets->len; i++)
        if (!train_tasks_encode(g_array_index(t->sets, TrainSet, i).tasks, &how, error))
            return FALSE;
    return TRUE;
}

/* Batches on disk have a byte for an expert. */
static gboolean check_routes(const Train *t, GError **error)
{
    return !t->config->optim_routing_replay || t->model->config.experts <= 256 ||
           error_set(error, ASSAY_ERROR_LIMIT, "optim.routing_replay: %u experts, at most 256",
                     t->model->config.experts);
}

static Trainer *trainer_for(const Train *t, GError **error)
{
    const TrainConfig *c = t->config;
    const TrainerRanks ranks = {t->comm->size > 1 ? t->comm : NULL, train_config_layout(c),
                                (guint)c->optim_shares, (double)c->run_ranks_wait_s};
    /* what the model has is rounded where its weights are bf16 */
    gboolean is_loaded =
        !*c->model_path || (train_holds_whole(c) && train_config_weights(c) == WEIGHT_REAL);
    g_autoptr(Trainer) trainer =
        trainer_new_ranks(t->model, (int)c->optim_rows,
                          c->optim_recompute ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL, &ranks, error);

    if (trainer && !is_loaded && !checkpoint_load(c->model_path, trainer, error))
        return NULL;
    return g_steal_pointer(&trainer);
}

static gboolean build(Train *t, GError **error)
{
    const TrainConfig *c = t->config;
    g_autofree char *tokenizer = g_build_filename(t->dir, "tokenizer", NULL);
    EngineLimits limits = {
        .cache_bytes = (gsize)c->rollout_cache_mib << 20,
        .rows_max = (int)c->rollout_rows,
        .sequences_max =
            (guint)MAX(MAX(c->rollout_groups, c->tasks_canary_groups) * c->rollout_samples,
                       c->eval_tasks * c->eval_samples) +
            16};

    return (t->tokenizer = tokenizer_for(t, tokenizer, error)) != NULL && encode_all(t, error) &&
           (t->model = model_for(t, error)) != NULL && check_routes(t, error) &&
           (t->trainer = trainer_for(t, error)) != NULL && resume(t, error) &&
           (t->sampler = sampler_new(c, t->model, &limits, t->dir, error)) != NULL &&
           (t->log = train_log_open(t->dir, t->warmup + t->update, error)) != NULL;
}

Train *train_open(const TrainConfig *config, VerdictRunner *verdicts,
                  const EpisodeHostOptions *boxes, Comm *comm, GError **error)
{
    const TrainPlanRanks ranks = {(guint)comm->size, (guint)comm_here(comm)};
    g_autoptr(Train) t = g_new0(Train, 1);
    TrainPlan plan;

    t->config = config;
    t->comm = comm;
    window_init(&t->window);
    t->dir = g_strdup(config->run_dir);
    t->sets = g_array_new(FALSE, FALSE, sizeof(TrainSet));
    if (!*t->dir || !*config->tasks_train) {
        error_set(error, ASSAY_ERROR_INPUT, "%s is not set", *t->dir ? "tasks.train" : "run.dir");
        return NULL;
    }
    t->roller.verdicts = verdicts;
    t->roller.dialect = train_dialect(config->rollout_dialect);
    if (t->roller.dialect->step_done) {
        StepsOptions steps = {boxes->slot_first, (guint)config->rollout_boxes,
                              boxes->allow_degraded};

        t->roller.steps = steps_new(&steps);
    }
    if (config->run_threads > 0)
        omp_set_num_threads((int)config->run_threads);
    if (!train_plan(config, &ranks, &plan, error) || !train_plan_check(&plan, error) ||
        !keep_config(t, error) ||
        !(t->tasks = train_tasks_read(config->tasks_train, 0, TRAIN_TO_GRADE, error)) ||
        !read_demos(t, error) || !read_canaries(t, error) || !read_sets(t, error) ||
        !build(t, error))
        return NULL;
    t->peak = bench_peak(t->model->ops);
    t->roller.sampler = t->sampler;
    t->roller.tokenizer = t->tokenizer;
    return g_steal_pointer(&t);
}

void train_free(Train *t)
{
    if (!t)
        return;
    train_log_close(t->log);
    train_batch_free(t->pending);
    steps_free(t->roller.steps);
    window_clear(&t->window);
    sampler_free(t->sampler);
    trainer_free(t->trainer);
    model_free(t->model);
    tokenizer_free(t->tokenizer);
    for (guint i = 0; i < t->sets->len; i++) {
        g_free(g_array_index(t->sets, TrainSet, i).name);
        g_clear_pointer(&g_array_index(t->sets, TrainSet, i).tasks, g_ptr_array_unref);
    }
    g_array_unref(t->sets);
    g_clear_pointer(&t->tasks, g_ptr_array_unref);
    g_clear_pointer(&t->demos, g_ptr_array_unref);
    g_clear_pointer(&t->canaries, g_ptr_array_unref);
    g_free(t->dir);
    g_free(t);
}
