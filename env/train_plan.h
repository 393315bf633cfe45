/*
 * The memory of a training run, part by part, before any of it is asked for.
 *
 *     train_plan(config, &plan, error) && train_plan_check(&plan, error)
 */
#pragma once

#include "env/train_config.h"
#include "policy/config.h"

#define TRAIN_PLAN_PARTS 10

typedef struct TrainPlanPart {
    const char *name;
    const char *key; /* what makes it smaller; "": the model's shape */
    guint64 bytes;
} TrainPlanPart;

typedef struct TrainPlan {
    TrainPlanPart parts[TRAIN_PLAN_PARTS];
    guint64 total;
    guint64 available; /* on this machine, now; G_MAXUINT64: not known */
} TrainPlan;

/* The shape under [model], with a vocabulary of `vocab`. */
gboolean train_shape(const TrainConfig *config, guint vocab, ModelConfig *shape, GError **error);

/* Does the first rank hold all weights? Where it samples, or makes them, or shares no model. */
gboolean train_holds_whole(const TrainConfig *config);

/* How many ranks train, and how many of them use this machine's memory. */
typedef struct TrainPlanRanks {
    guint all, here;
} TrainPlanRanks;

/* What the run will hold at most, as its first rank; the vocabulary as large as it may become.
 * Refuses ranks that cannot share the work, with the numbers. */
gboolean train_plan(const TrainConfig *config, const TrainPlanRanks *ranks, TrainPlan *plan,
                    GError **error);

/* More than there is: LIMIT, the sum and its parts. */
gboolean train_plan_check(const TrainPlan *plan, GError **error);
