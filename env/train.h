/*
 * A training run: tasks, model, engine and trainer in one process, from warm-up to the last update.
 *
 *     Train *train = train_open(config, verdicts, &boxes, comm, error);      or where it stopped
 *     train_run(train, error);
 *
 * Files of a run: docs/training.md.
 */
#pragma once

#include "env/train_config.h"
#include "env/train_log.h"
#include "env/train_rollout.h"
#include "env/train_window.h"
#include "policy/trainer.h"

typedef struct TrainSet {
    char *name;
    GPtrArray *tasks; /* TrainTask */
} TrainSet;

/* Groups to learn from, and what it took to get them. */
typedef struct TrainBatch {
    GPtrArray *tasks;  /* TrainTask, of each group */
    GPtrArray *groups; /* RolloutGroup, with advantages */
    RolloutStats rolled;
    RolloutStats canaries; /* of those sampled beside it */
    AdvantageStats seen;   /* of all that was rolled out, dropped groups included */
    VerdictStats verdicts;
    WindowSeen window;      /* of all that was rolled out as well */
    double seconds, sync_s; /* in all; of these, weights on their way to a server */
    guint64 version;        /* of the weights that sampled it */
} TrainBatch;

typedef struct Train {
    const TrainConfig *config;
    char *dir;
    GPtrArray *tasks;    /* TrainTask: to learn from */
    GPtrArray *demos;    /* TrainTask: to imitate */
    GPtrArray *canaries; /* TrainTask: that nobody can solve; NULL: none */
    GArray *sets;        /* TrainSet: to be measured on */
    Tokenizer *tokenizer;
    Model *model;
    Comm *comm; /* the ranks that train; this one does all the rest alone */
    Trainer *trainer;
    Sampler *sampler;
    Roller roller;
    TrainLog *log;
    TrainWindow window;
    TrainBatch *pending;   /* one step behind: sampled already */
    gint64 warmup, update; /* done so far */
    gint64 episodes, tokens;
    double peak; /* operations a second that this machine could do at best */
    gint stop;   /* set by a signal: end after this update */
} Train;

/* Opens the run of `config->run_dir`: what it holds is gone on with. `boxes`: for tools, as many as
 * the configuration says, from that slot on. `comm`: this rank, the first, and its followers. */
Train *train_open(const TrainConfig *config, VerdictRunner *verdicts,
                  const EpisodeHostOptions *boxes, Comm *comm, GError **error);
void train_free(Train *train);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Train, train_free)

/* Warm-up, updates, evaluations, checkpoints, until the end or until `stop`. */
gboolean train_run(Train *train, GError **error);

typedef enum TrainPhase { TRAIN_WARMUP = 0, TRAIN_RL } TrainPhase;

/* Groups that one step is made of, advantages set. */
typedef struct TrainMinibatch {
    TrainPhase phase;
    TrainTask *const *tasks; /* [n]; NULL in the warm-up */
    RolloutGroup **groups;   /* [n] */
    guint n;
    gboolean first; /* after a rollout */
    double lr;
} TrainMinibatch;

TrainerStep train_step(const TrainConfig *config, double lr);
TrainerLoss train_loss(const TrainConfig *config, TrainPhase phase, NormOptions *ret_norm);

/* --- train_failed.c */

/* Keeps the minibatch, weights and moments under failed/NNNNNN of the run and ends with `why`,
 * which it takes; always FALSE. */
gboolean train_failed(const Train *train, const TrainMinibatch *minibatch, GError *why,
                      GError **error);
/* Gradients and step of what was kept in `dir`, in memory: FALSE with what was wrong, or what
 * became of it. */
gboolean train_retry(const char *dir, TrainerStats *stats, GError **error);

/* --- train_batch.c */

/* The batch of update `number`, sampled with the present weights. */
TrainBatch *train_batch_sample(Train *train, gint64 number, GError **error);
void train_batch_free(TrainBatch *batch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TrainBatch, train_batch_free)
void train_batch_log(Train *train, const TrainBatch *batch);
json_t *train_batch_json(const TrainBatch *batch);
TrainBatch *train_batch_read(Train *train, const json_t *json, GError **error);

/* What is drawn is drawn from the run's seed, what for, and a number. */
typedef enum TrainSeed {
    TRAIN_SEED_WARMUP = 1,
    TRAIN_SEED_TASKS,
    TRAIN_SEED_ROLLOUT,
    TRAIN_SEED_CANARIES,
} TrainSeed;
guint64 train_seed(const Train *train, TrainSeed what, gint64 number);
GRand *train_rand(const Train *train, TrainSeed what, gint64 number);

/* How the run samples, but for the seed. */
RolloutOptions train_rollout_options(const Train *train);

/* --- train_canary.c */

/* Episodes of tasks that nobody can solve, beside batch `number`. A reward is said aloud, and what
 * earned it is kept in canaries/NNNNNN.jsonl. */
gboolean train_canaries_sample(Train *train, TrainBatch *batch, gint64 number, GError **error);
void train_canaries_log(Train *train, const RolloutStats *stats);

/* --- train_eval.c */

/* Episodes on every set: pass@1 after the first and after all turns, pass@k; logged at the present
 * update. */
gboolean train_eval(Train *train, GError **error);

/* --- train_setup.c */

gboolean train_checkpoint(Train *train, GError **error);
/* The model that loss.kl keeps near to: the weights as they are at the first rollout, kept for
 * those who go on. Nothing where no such term is wanted. */
gboolean train_reference(Train *train, GError **error);
