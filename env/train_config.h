/*
 * RUN.conf: everything that a training run is told, one table of keys.
 *
 *     g_autoptr(TrainConfig) config = train_config_load("examples/repair.conf", settings, error);
 *     config->optim_lr
 *
 * The file is a key file with groups; `--set group.key=value` comes after it. A key that is not in
 * the table, or a value out of its range, is an error: nothing is silently ignored.
 */
#pragma once

#include "policy/advantage.h"
#include "policy/layout.h"
#include "policy/loss.h"
#include "policy/remote.h"

typedef struct TrainConfig {
    /* [run] */
    char *run_dir;
    gint64 run_seed, run_updates, run_checkpoint_every, run_threads, run_ranks_wait_s, run_behind;
    /* [ranks] */
    gint64 ranks_tp, ranks_ep, ranks_sp;
    /* [model] */
    char *model_path, *model_weights, *model_pattern;
    gint64 model_hidden, model_heads, model_kv_heads, model_rotary, model_experts, model_topk,
        model_ffn, model_vocab, model_chunk;
    /* [tasks] */
    gboolean tasks_shown;
    gint64 tasks_canary_groups;
    char *tasks_canaries, *tasks_train, *tasks_warmup;
    /* [warmup] */
    gint64 warmup_updates, warmup_tokens, warmup_lr_warmup;
    double warmup_lr, warmup_lr_end, warmup_gold, warmup_text, warmup_read;
    /* [rollout] */
    gint64 rollout_groups, rollout_samples, rollout_turns, rollout_tokens, rollout_cache_mib;
    gint64 rollout_rows, rollout_refill, rollout_repetition, rollout_overlong_from;
    gint64 rollout_turns_learnt, rollout_boxes, rollout_context, rollout_observation,
        rollout_command_s;
    char *rollout_cut, *rollout_dialect, *rollout_windows;
    double rollout_window_flat, rollout_window_near;
    gint64 rollout_window_span;
    char *rollout_server, *rollout_server_key, *rollout_server_model, *rollout_server_api;
    gboolean rollout_server_update;
    gint64 rollout_server_flight, rollout_server_attempts, rollout_server_wait_s;
    double rollout_temperature, rollout_rate_low, rollout_rate_high, rollout_overlong_penalty;
    /* [loss] */
    char *loss_name, *loss_advantage, *loss_normaliser, *loss_mismatch, *loss_kl, *loss_anchor;
    double loss_is_cap, loss_is_floor, loss_eps_low, loss_eps_high, loss_dual_cap, loss_tv_max;
    double loss_mismatch_cap, loss_mismatch_floor, loss_kl_beta, loss_entropy, loss_balance;
    gboolean warmup_skip_wrong, loss_over_all, loss_population;
    /* [optim] */
    double optim_lr, optim_lr_end, optim_beta1, optim_beta2, optim_eps, optim_weight_decay;
    double optim_clip_norm;
    gboolean optim_recompute, optim_routing_replay;
    gint64 optim_lr_warmup, optim_minibatches, optim_epochs, optim_rows, optim_shares;
    /* [eval] */
    char *eval_sets;
    gint64 eval_every, eval_samples, eval_tasks;
} TrainConfig;

typedef enum TrainKeyType { TRAIN_TEXT = 0, TRAIN_INT, TRAIN_NUMBER, TRAIN_BOOL } TrainKeyType;

typedef struct TrainKey {
    const char *name; /* "optim.lr" */
    TrainKeyType type;
    gsize offset;
    double min, max;
    const char *fallback;
    const char *help;
} TrainKey;
extern const TrainKey train_keys[]; /* ended by a NULL name */

/* `path` may be NULL (defaults); `settings` are "group.key=value", NULL-terminated, or NULL. */
TrainConfig *train_config_load(const char *path, const char *const *settings, GError **error);
void train_config_free(TrainConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TrainConfig, train_config_free)

/* The whole configuration as a key file, every key with its value: what a run keeps. */
char *train_config_text(const TrainConfig *config);

/* The value of a key in such a file; NULL: it is not there. */
char *train_key_value(GKeyFile *file, const TrainKey *key);

/* What the loss, advantage, normaliser and corrections add up to; names are checked by load. */
LossOptions train_config_loss(const TrainConfig *config, const Loss **ret_loss);
AdvantageOptions train_config_advantage(const TrainConfig *config);
NormOptions train_config_norm(const TrainConfig *config);
gint64 train_config_turns(const TrainConfig *config); /* of the episodes that are learnt from */
RemoteApi train_config_api(const TrainConfig *config);
/* dp is not said here: what the number of ranks leaves. */
Layout train_config_layout(const TrainConfig *config);
WeightFormat train_config_weights(const TrainConfig *config);

/* The limits of rollout.windows, shortest first; returns how many. */
#define TRAIN_WINDOWS_MAX 16u
guint train_config_windows(const TrainConfig *config, gint64 *windows);
