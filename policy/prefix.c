/*
 * A tree of computed chunks.
 *
 * Invariants
 *  1. A node is equal to a lookup when its parent is the same node and its tokens are equal: the
 *     hash only finds it. No other text can ever be taken for a prompt's.
 *  2. A node with children keeps its page. Leaves go first, the least recently used of them.
 *  3. Blocks are shared, never written: sequences copy before they write (cache.h).
 */
#include "policy/prefix.h"

#include <string.h>

/* Hashes of chunks that went, kept to tell why a prompt missed. */
#define GONE_MAX 65536

typedef struct Node Node;
struct Node {
    Node *parent;
    guint64 hash; /* of the tokens from the start */
    int *ids;     /* [chunk] */
    gint64 depth; /* chunks from the start, this one included */
    guint children;
    Block *page, *state; /* state: after the chunk, or NULL */
    GList link;          /* in the order of use */
};

struct PrefixCache {
    CachePool *pool;
    gsize chunk;
    GHashTable *nodes; /* Node, by parent and tokens */
    GQueue used;       /* most recent first */
    GHashTable *gone;  /* hash -> PrefixMiss */
};

static const char *const miss_names[PREFIX_MISSES] = {
    [PREFIX_WHOLE] = "whole",       [PREFIX_SHORT] = "short",     [PREFIX_NEW] = "new",
    [PREFIX_NO_STATE] = "no_state", [PREFIX_EVICTED] = "evicted", [PREFIX_WEIGHTS] = "weights",
};

const char *prefix_miss_name(PrefixMiss miss)
{
    return miss_names[miss];
}

/* FNV-1a over the chunk's tokens, from the parent's hash on. */
static guint64 chunk_hash(guint64 parent, const int *ids, gsize chunk)
{
    guint64 h = parent ^ 0xcbf29ce484222325ull;

    for (gsize i = 0; i < chunk; i++)
        h = (h ^ (guint32)ids[i]) * 0x100000001b3ull;
    return h ^ (h >> 29);
}

static guint node_hash(gconstpointer key)
{
    return (guint)((const Node *)key)->hash;
}

/* All nodes of one table have chunks of one size; it stands before the tokens. */
static gboolean node_equal(gconstpointer a, gconstpointer b)
{
    const Node *x = a, *y = b;

    return x->hash == y->hash && x->parent == y->parent && x->ids[-1] == y->ids[-1] &&
           memcmp(x->ids, y->ids, (gsize)x->ids[-1] * sizeof(int)) == 0;
}

PrefixCache *prefix_new(CachePool *pool)
{
    PrefixCache *prefix = g_new0(PrefixCache, 1);

    prefix->pool = pool;
    prefix->chunk = pool->model->config.chunk;
    prefix->nodes = g_hash_table_new(node_hash, node_equal);
    prefix->gone = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    g_queue_init(&prefix->used);
    return prefix;
}

static void node_free(PrefixCache *prefix, Node *node, PrefixMiss why)
{
    if (g_hash_table_size(prefix->gone) >= GONE_MAX)
        g_hash_table_remove_all(prefix->gone);
    g_hash_table_insert(prefix->gone, g_memdup2(&node->hash, sizeof node->hash),
                        GINT_TO_POINTER(why));
    g_hash_table_remove(prefix->nodes, node);
    g_queue_unlink(&prefix->used, &node->link);
    if (node->parent)
        node->parent->children--;
    block_unref(prefix->pool, node->page);
    block_unref(prefix->pool, node->state);
    g_free(node->ids - 1);
    g_free(node);
}

void prefix_drop(PrefixCache *prefix)
{
    for (GList *link; (link = prefix->used.tail);)
        node_free(prefix, link->data, PREFIX_WEIGHTS);
}

void prefix_free(PrefixCache *prefix)
{
    if (!prefix)
        return;
    prefix_drop(prefix);
    g_hash_table_unref(prefix->nodes);
    g_hash_table_unref(prefix->gone);
    g_free(prefix);
}

guint prefix_nodes(const PrefixCache *prefix)
{
    return g_hash_table_size(prefix->nodes);
}

/* Looks a chunk up. `room` [chunk + 1] takes the key. */
static Node *child_of(const PrefixCache *prefix, Node *parent, const int *ids, int *room,
                      guint64 *hash)
{
    Node key = {.parent = parent, .ids = room + 1};

    *hash = key.hash = chunk_hash(parent ? parent->hash : 0, ids, prefix->chunk);
    room[0] = (int)prefix->chunk;
    memcpy(room + 1, ids, prefix->chunk * sizeof(int));
    return g_hash_table_lookup(prefix->nodes, &key);
}

/* The whole path counts as used, parents after their children. */
static void touch(PrefixCache *prefix, Node *node)
{
    for (; node; node = node->parent) {
        g_queue_unlink(&prefix->used, &node->link);
        g_queue_push_head_link(&prefix->used, &node->link);
    }
}

static void take(SeqCache *seq, Node *node)
{
    gint64 depth = node->depth;

    g_ptr_array_set_size(seq->pages, (int)depth);
    g_ptr_array_set_size(seq->datas, (int)depth);
    block_ref(node->state);
    seq->state = node->state;
    seq->length = depth * seq->pool->model->config.chunk;
    for (; node; node = node->parent) {
        block_ref(node->page);
        seq->pages->pdata[node->depth - 1] = node->page;
        seq->datas->pdata[node->depth - 1] = block_data(node->page);
    }
}

gint64 prefix_find(PrefixCache *prefix, const int *ids, gint64 n, SeqCache *seq, PrefixMiss *miss)
{
    gint64 chunks = (n - 1) / (gint64)prefix->chunk;
    g_autofree int *room = g_new(int, prefix->chunk + 1);
    Node *node = NULL, *best = NULL;
    guint64 hash;

    *miss = chunks > 0 ? PREFIX_WHOLE : PREFIX_SHORT;
    for (gint64 i = 0; i < chunks; i++) {
        Node *next = child_of(prefix, node, ids + i * (gint64)prefix->chunk, room, &hash);

        if (!next) {
            gpointer why = NULL;
            gboolean gone = g_hash_table_lookup_extended(prefix->gone, &hash, NULL, &why);

            *miss = gone ? (PrefixMiss)GPOINTER_TO_INT(why) : PREFIX_NEW;
            break;
        }
        node = next;
        best = node->state ? node : best;
    }
    if (node != best)
        *miss = PREFIX_NO_STATE;
    if (!best)
        return 0;
    take(seq, best);
    touch(prefix, best);
    return seq->length;
}

static Node *node_new(PrefixCache *prefix, Node *parent, const int *ids, guint64 hash, Block *page)
{
    Node *node = g_new0(Node, 1);

    node->parent = parent;
    node->hash = hash;
    node->ids = g_new(int, prefix->chunk + 1) + 1;
    node->ids[-1] = (int)prefix->chunk;
    memcpy(node->ids, ids, prefix->chunk * sizeof(int));
    node->depth = parent ? parent->depth + 1 : 1;
    node->page = page;
    node->link.data = node;
    block_ref(page);
    if (parent)
        parent->children++;
    g_hash_table_add(prefix->nodes, node);
    g_queue_push_head_link(&prefix->used, &node->link);
    return node;
}

void prefix_store(PrefixCache *prefix, const int *ids, const SeqCache *seq)
{
    gint64 chunks = seq->length / (gint64)prefix->chunk;
    g_autofree int *room = g_new(int, prefix->chunk + 1);
    Node *node = NULL;
    guint64 hash;

    for (gint64 i = 0; i < chunks; i++) {
        const int *from = ids + i * (gint64)prefix->chunk;
        Node *next = child_of(prefix, node, from, room, &hash);

        node = next ? next : node_new(prefix, node, from, hash, seq->pages->pdata[i]);
    }
    if (node && !node->state && seq->state) {
        block_ref(seq->state);
        node->state = seq->state;
    }
    touch(prefix, node);
}

gboolean prefix_evict(PrefixCache *prefix)
{
    for (GList *link = prefix->used.tail; link; link = link->prev) {
        Node *node = link->data;

        if (node->children > 0)
            continue;
        node_free(prefix, node, PREFIX_EVICTED);
        return TRUE;
    }
    return FALSE;
}
