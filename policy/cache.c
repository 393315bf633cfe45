/*
 * Blocks and the caches of sequences made of them.
 *
 * Invariants
 *  1. A block with more than one owner is never written: reserve copies it first.
 *  2. Blocks begin as zeros and hold finite numbers ever after; kernels may read beyond the length
 *     and weigh what they find with 0.
 *  3. The bytes in use never pass the limit; idle blocks count, and are given up for another kind.
 *  4. `state` is the state before chunk length / C, whoever else may own it.
 *
 * Not here: which prompts are kept (prefix.c), who is put off when the pool is full (engine.c).
 */
#include "policy/cache.h"

#include <stdlib.h>
#include <string.h>

struct Block {
    guint refs;
    BlockKind kind;
    void *data;
};

/* ---- the pool ---- */

CachePool *cache_pool_new(const Model *model, gsize bytes_max)
{
    CachePool *pool = g_new0(CachePool, 1);

    pool->model = model;
    pool->bytes_max = bytes_max;
    pool->size[BLOCK_PAGE] = model->cache.page_bytes;
    pool->size[BLOCK_STATE] = model->cache.state_bytes;
    pool->size[BLOCK_OPEN] = model->cache.open_bytes;
    for (guint k = 0; k < BLOCK_KINDS; k++)
        g_queue_init(&pool->idle[k]);
    return pool;
}

static void block_destroy(CachePool *pool, Block *block)
{
    pool->bytes -= pool->size[block->kind];
    free(block->data);
    g_free(block);
}

void cache_pool_free(CachePool *pool)
{
    if (!pool)
        return;
    for (guint k = 0; k < BLOCK_KINDS; k++) {
        g_assert(pool->used[k] == 0);
        for (Block *b; (b = g_queue_pop_head(&pool->idle[k]));)
            block_destroy(pool, b);
    }
    g_free(pool);
}

gsize cache_pool_need(const CachePool *pool, gint64 tokens)
{
    gint64 chunk = pool->model->config.chunk, pages = (tokens + chunk - 1) / chunk;

    return (gsize)pages * pool->size[BLOCK_PAGE] + pool->size[BLOCK_STATE] + pool->size[BLOCK_OPEN];
}

/* Gives idle blocks back until `bytes` more fit; FALSE when they never will. */
static gboolean make_room(CachePool *pool, gsize bytes)
{
    for (guint k = 0; k < BLOCK_KINDS && pool->bytes + bytes > pool->bytes_max; k++)
        for (Block *b;
             pool->bytes + bytes > pool->bytes_max && (b = g_queue_pop_head(&pool->idle[k]));)
            block_destroy(pool, b);
    return pool->bytes + bytes <= pool->bytes_max;
}

static Block *block_new(CachePool *pool, BlockKind kind)
{
    Block *block = g_queue_pop_head(&pool->idle[kind]);

    if (!block) {
        if (!make_room(pool, pool->size[kind]))
            return NULL;
        block = g_new0(Block, 1);
        block->kind = kind;
        if (posix_memalign(&block->data, 64, MAX(pool->size[kind], 64))) {
            g_free(block);
            return NULL;
        }
        memset(block->data, 0, MAX(pool->size[kind], 64));
        pool->bytes += pool->size[kind];
        pool->bytes_peak = MAX(pool->bytes_peak, pool->bytes);
    }
    block->refs = 1;
    pool->used[kind]++;
    return block;
}

void block_ref(Block *block)
{
    block->refs++;
}

void block_unref(CachePool *pool, Block *block)
{
    if (!block || --block->refs > 0)
        return;
    pool->used[block->kind]--;
    g_queue_push_head(&pool->idle[block->kind], block);
}

void *block_data(const Block *block)
{
    return block->data;
}

gboolean block_shared(const Block *block)
{
    return block->refs > 1;
}

/* *block becomes one of our own; its contents are kept if `copy`. */
static gboolean make_own(CachePool *pool, Block **block, BlockKind kind, gboolean copy)
{
    Block *own;

    if (*block && !block_shared(*block))
        return TRUE;
    own = block_new(pool, kind);
    if (!own)
        return FALSE;
    if (*block && copy)
        memcpy(own->data, (*block)->data, pool->size[kind]);
    block_unref(pool, *block);
    *block = own;
    return TRUE;
}

/* ---- sequences ---- */

SeqCache *seq_cache_new(CachePool *pool)
{
    SeqCache *seq = g_new0(SeqCache, 1);

    seq->pool = pool;
    seq->pages = g_ptr_array_new();
    seq->datas = g_ptr_array_new();
    return seq;
}

void seq_cache_free(SeqCache *seq)
{
    if (!seq)
        return;
    for (guint i = 0; i < seq->pages->len; i++)
        block_unref(seq->pool, seq->pages->pdata[i]);
    if (seq->state_next != seq->state)
        block_unref(seq->pool, seq->state_next);
    block_unref(seq->pool, seq->state);
    block_unref(seq->pool, seq->open);
    g_ptr_array_unref(seq->pages);
    g_ptr_array_unref(seq->datas);
    g_free(seq);
}

SeqCache *seq_cache_fork(const SeqCache *seq)
{
    guint chunk = seq->pool->model->config.chunk;
    guint pages = (guint)((seq->length + chunk - 1) / chunk);
    SeqCache *fork = seq_cache_new(seq->pool);

    for (guint i = 0; i < pages; i++) {
        block_ref(seq->pages->pdata[i]);
        g_ptr_array_add(fork->pages, seq->pages->pdata[i]);
        g_ptr_array_add(fork->datas, seq->datas->pdata[i]);
    }
    fork->state = seq->state;
    fork->open = seq->open;
    fork->length = seq->length;
    if (fork->state)
        block_ref(fork->state);
    if (fork->open)
        block_ref(fork->open);
    return fork;
}

static gboolean reserve_pages(SeqCache *seq, int rows)
{
    guint chunk = seq->pool->model->config.chunk;
    guint first = (guint)(seq->length / chunk);
    guint last = (guint)((seq->length + rows - 1) / chunk);

    for (guint i = first; i <= last; i++) {
        gboolean there = i < seq->pages->len;
        Block *page = there ? seq->pages->pdata[i] : NULL;

        if (!make_own(seq->pool, &page, BLOCK_PAGE, TRUE))
            return FALSE;
        if (!there) {
            g_ptr_array_add(seq->pages, page);
            g_ptr_array_add(seq->datas, page->data);
        }
        seq->pages->pdata[i] = page;
        seq->datas->pdata[i] = page->data;
    }
    return TRUE;
}

gboolean seq_cache_reserve(SeqCache *seq, int rows)
{
    guint chunk = seq->pool->model->config.chunk;
    gboolean folds = seq->length / chunk != (seq->length + rows) / chunk;

    if (!reserve_pages(seq, rows) || !make_own(seq->pool, &seq->open, BLOCK_OPEN, TRUE))
        return FALSE;
    if (!folds)
        return TRUE;
    if (seq->state && !block_shared(seq->state))
        seq->state_next = seq->state;
    else if (seq->state_next && seq->state_next != seq->state)
        return TRUE;
    else
        seq->state_next = block_new(seq->pool, BLOCK_STATE);
    return seq->state_next != NULL;
}

OpsSpan seq_cache_span(SeqCache *seq, int row0, int rows)
{
    return (OpsSpan){
        .row0 = row0,
        .rows = rows,
        .pos0 = seq->length,
        .pages = seq->datas->pdata,
        .state_in = seq->state ? seq->state->data : NULL,
        .state_out = seq->state_next ? seq->state_next->data : NULL,
        .open = seq->open->data,
    };
}

void seq_cache_advance(SeqCache *seq, int rows)
{
    guint chunk = seq->pool->model->config.chunk;
    gint64 before = seq->length / chunk;

    seq->length += rows;
    if (seq->length / chunk == before)
        return;
    if (seq->state_next != seq->state) {
        block_unref(seq->pool, seq->state);
        seq->state = seq->state_next;
    }
    seq->state_next = NULL;
}
