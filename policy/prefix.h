/*
 * The prefix cache: chunks of prompts that were computed before, found again by their tokens.
 *
 * A tree of chunks. A node owns the page of its chunk, and at some depths the lightning state after
 * it; a prompt can be taken up only where both are there, all the way and at the end. States are
 * kept where sequences are likely to part or to go on: see engine.c.
 */
#pragma once

#include "policy/cache.h"

/* Why no more of a prompt was found than was. */
typedef enum PrefixMiss {
    PREFIX_WHOLE = 0, /* nothing was missed but the open chunk */
    PREFIX_SHORT,     /* the prompt is not longer than one chunk */
    PREFIX_NEW,       /* these tokens were never seen after those before */
    PREFIX_NO_STATE,  /* the pages are there, but no state so deep */
    PREFIX_EVICTED,   /* was there, and gave way to others */
    PREFIX_WEIGHTS,   /* was there, under weights of before */
    PREFIX_MISSES,
} PrefixMiss;

const char *prefix_miss_name(PrefixMiss miss);

typedef struct PrefixCache PrefixCache;

PrefixCache *prefix_new(CachePool *pool);
void prefix_free(PrefixCache *prefix);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PrefixCache, prefix_free)

/* Gives an empty sequence as much of `ids` as is known, but not its last token. Returns how many
 * tokens that were: whole chunks. */
gint64 prefix_find(PrefixCache *prefix, const int *ids, gint64 n, SeqCache *seq, PrefixMiss *miss);

/* Keeps the whole chunks of a sequence, and the state at their end. ids: its tokens. */
void prefix_store(PrefixCache *prefix, const int *ids, const SeqCache *seq);

/* Gives up the least recently used leaf that frees a block; FALSE when there is none. */
gboolean prefix_evict(PrefixCache *prefix);

/* Forgets everything: the weights changed. */
void prefix_drop(PrefixCache *prefix);

guint prefix_nodes(const PrefixCache *prefix);
