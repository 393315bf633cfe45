/*
 * A memory plan: what one of several ranks holds, by class, before anything is allocated.
 *
 * Counted: weights, lightning states (F32), the keys and values of each open chunk and the KV cache
 * (BF16). Not counted: activations and scratch of a step, the allocator's own.
 */
#pragma once

#include "policy/layout.h"

/* How weights are kept. Norms, embedding and head stay BF16 and the router F32 in all but f32. */
typedef enum PlanFormat {
    PLAN_F32 = 0,
    PLAN_BF16,
    PLAN_FP8,  /* one byte and a scale of two per block of 128 x 128 */
    PLAN_INT4, /* experts: half a byte and a scale of two per 32 along the inputs; the rest FP8 */
    PLAN_FORMATS,
} PlanFormat;

typedef struct PlanAsk {
    PlanFormat format;
    guint64 context; /* tokens of each sequence */
    guint32 batch;   /* sequences at once, dealt out over dp */
    Layout layout;   /* of all ranks; sp shares no memory that is counted here */
} PlanAsk;

typedef struct MemoryPlan {
    guint64 weights[CLASS_COUNT]; /* bytes of the fullest rank, as all below */
    guint64 weights_sum;
    guint64 state; /* lightning states of the batch */
    guint64 open;  /* open chunks of the batch */
    guint64 kv;    /* pages of the batch */
    guint64 total;
    guint64 sequence; /* state, open and kv of one sequence */
} MemoryPlan;

const char *plan_format_name(PlanFormat format);

/* Refuses a layout that does not divide, and sizes over the limits, with the numbers. */
gboolean plan_memory(const ModelConfig *config, const PlanAsk *ask, MemoryPlan *plan,
                     GError **error);
