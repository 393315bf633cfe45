/*
 * The insertion-ordered map every parser fills.
 *
 * Invariants: one entry per name; entries never move; names may hold NULs.
 */
#include "reward/status_map.h"

#include <string.h>

struct StatusMap {
    GPtrArray *entries;  /* StatusEntry *, in order */
    GHashTable *by_name; /* &entry->name -> entry */
    GStringChunk *bytes;
};

static guint span_hash(gconstpointer key)
{
    const Span *span = key;
    guint32 hash = 2166136261u; /* FNV-1a */
    for (gsize i = 0; i < span->len; i++)
        hash = (hash ^ (guchar)span->ptr[i]) * 16777619u;
    return hash;
}

static gboolean span_equal(gconstpointer a, gconstpointer b)
{
    return span_eq(*(const Span *)a, *(const Span *)b);
}

StatusMap *status_map_new(void)
{
    StatusMap *map = g_new0(StatusMap, 1);
    map->entries = g_ptr_array_new_with_free_func(g_free);
    map->by_name = g_hash_table_new(span_hash, span_equal);
    map->bytes = g_string_chunk_new(4096);
    return map;
}

void status_map_free(StatusMap *map)
{
    if (map == NULL)
        return;
    g_hash_table_destroy(map->by_name);
    g_ptr_array_unref(map->entries);
    g_string_chunk_free(map->bytes);
    g_free(map);
}

static Span span_keep(StatusMap *map, Span span)
{
    if (span.len == 0)
        return SPAN("");
    return (Span){g_string_chunk_insert_len(map->bytes, span.ptr, (gssize)span.len), span.len};
}

void status_map_set(StatusMap *map, Span name, Span status)
{
    StatusEntry *entry = g_hash_table_lookup(map->by_name, &name);
    if (entry == NULL) {
        entry = g_new0(StatusEntry, 1);
        entry->name = span_keep(map, name);
        entry->status = span_keep(map, status);
        g_ptr_array_add(map->entries, entry);
        g_hash_table_insert(map->by_name, &entry->name, entry);
        return;
    }
    if (span_eq(entry->status, status))
        return;
    if (status_is_pass(entry->status) != status_is_pass(status))
        entry->torn = TRUE;
    entry->status = span_keep(map, status);
}

guint status_map_len(const StatusMap *map)
{
    return map->entries->len;
}

const StatusEntry *status_map_at(const StatusMap *map, guint i)
{
    g_assert(i < map->entries->len);
    return g_ptr_array_index(map->entries, i);
}

const StatusEntry *status_map_find(const StatusMap *map, Span name)
{
    return g_hash_table_lookup(map->by_name, &name);
}

gboolean status_is_pass(Span status)
{
    return span_eq(status, STATUS_PASSED) || span_eq(status, STATUS_XFAIL);
}

gboolean status_is_fail(Span status)
{
    return span_eq(status, STATUS_FAILED) || span_eq(status, STATUS_ERROR);
}
