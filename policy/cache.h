/*
 * What sequences remember: pages of keys and values, lightning states, open chunks.
 *
 * All three are blocks of one pool, counted by reference. A block with one owner may be written; a
 * shared one is copied first. So a fork costs references, and only what then differs is copied:
 * the page and the open chunk on the next token, the state when the next chunk is full.
 *
 *     SeqCache *seq = seq_cache_new(pool);
 *     if (!seq_cache_reserve(seq, rows, error)) ...        out of memory: nothing changed
 *     OpsSpan span = seq_cache_span(seq, row0, rows);      for forward()
 *     seq_cache_advance(seq, rows);
 */
#pragma once

#include "policy/model.h"

typedef enum BlockKind {
    BLOCK_PAGE = 0,
    BLOCK_STATE,
    BLOCK_OPEN,
    BLOCK_KINDS,
} BlockKind;

typedef struct Block Block;

typedef struct CachePool {
    const Model *model;
    gsize bytes, bytes_max, bytes_peak; /* in use, of the limit */
    gsize size[BLOCK_KINDS];
    guint used[BLOCK_KINDS];
    GQueue idle[BLOCK_KINDS]; /* blocks without an owner, kept for the next */
} CachePool;

CachePool *cache_pool_new(const Model *model, gsize bytes_max);
void cache_pool_free(CachePool *pool);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CachePool, cache_pool_free)

/* Bytes that a sequence of `tokens` takes when it shares nothing. */
gsize cache_pool_need(const CachePool *pool, gint64 tokens);

void block_ref(Block *block);
void block_unref(CachePool *pool, Block *block);
void *block_data(const Block *block);
gboolean block_shared(const Block *block);

typedef struct SeqCache {
    CachePool *pool;
    GPtrArray *pages;  /* Block, chunk by chunk */
    GPtrArray *datas;  /* their data, as OpsSpan wants them */
    Block *state;      /* before the open chunk; NULL in the first chunk */
    Block *state_next; /* where the next fold lands, once reserved; may be `state` */
    Block *open;       /* what it holds counts only within a chunk */
    gint64 length;     /* tokens in it */
} SeqCache;

SeqCache *seq_cache_new(CachePool *pool);
void seq_cache_free(SeqCache *seq);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SeqCache, seq_cache_free)
SeqCache *seq_cache_fork(const SeqCache *seq);

/* Makes everything writable that `rows` more tokens will write. FALSE when the pool is full: what
 * was taken by then stays taken, and the call may be repeated. */
gboolean seq_cache_reserve(SeqCache *seq, int rows);
OpsSpan seq_cache_span(SeqCache *seq, int row0, int rows);
/* `rows` tokens of the span became part of the sequence; the others of it are forgotten. Only rows
 * that stay may fill a chunk. */
void seq_cache_advance(SeqCache *seq, int rows);
