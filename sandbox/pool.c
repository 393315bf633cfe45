/*
 * Warm boxes.
 *
 * Invariants:
 *   1. A box serves one key: everything of its spec that could make a difference, and the tenant.
 *   2. What is idle has been reset; a box in doubt is closed, never kept.
 *   3. A slot has at most one box.
 *
 * Not here: what a reset does (box_snapshot.c, keeper.c).
 */
#include "sandbox/pool.h"

#include "base/digest.h"
#include "base/error.h"
#include "sandbox/box_private.h"

#include <string.h>
#include <sys/stat.h>

typedef struct Place {
    Box *box;  /* NULL: free */
    char *key; /* of the box */
    guint uses;
    gboolean is_taken;
    guint64 given_at; /* which is idle the longest */
} Place;

struct BoxPool {
    guint slot_first, n_places, uses_max, n_opened;
    guint64 clock;
    Place *places;
};

BoxPool *box_pool_new(guint slot_first, guint n_slots, guint uses_max)
{
    BoxPool *pool = g_new0(BoxPool, 1);
    *pool = (BoxPool){.slot_first = slot_first,
                      .n_places = n_slots,
                      .uses_max = uses_max,
                      .places = g_new0(Place, n_slots)};
    return pool;
}

static void retire(Place *place)
{
    g_clear_pointer(&place->box, box_close);
    g_clear_pointer(&place->key, g_free);
    *place = (Place){0};
}

void box_pool_free(BoxPool *pool)
{
    for (guint i = 0; i < pool->n_places; i++) {
        g_assert(!pool->places[i].is_taken);
        retire(&pool->places[i]);
    }
    g_free(pool->places);
    g_free(pool);
}

/* A directory by what it is, not by its descriptor. */
static void add_dirs(Digest *digest, const int *fds, gsize n)
{
    digest_add(digest, &n, sizeof n);
    for (gsize i = 0; i < n; i++) {
        struct stat st = {0};
        if (fstat(fds[i], &st) == 0) {
            digest_add(digest, &st.st_dev, sizeof st.st_dev);
            digest_add(digest, &st.st_ino, sizeof st.st_ino);
        }
    }
}

static char *key_of(const BoxSpec *spec, const char *tenant)
{
    g_autoptr(Digest) digest = digest_new("assay.pool.v1");
    const guint numbers[] = {spec->net,
                             spec->uid,
                             spec->gid,
                             spec->require,
                             (guint)spec->allow_degraded,
                             (guint)spec->root_read_only};
    digest_add_str(digest, tenant);
    digest_add(digest, numbers, sizeof numbers);
    digest_add(digest, &spec->limits, sizeof spec->limits);
    digest_add_str(digest, spec->work_path);
    digest_add_str(digest, spec->hostname);
    add_dirs(digest, spec->root_fds, spec->n_root);
    add_dirs(digest, spec->layer_fds, spec->n_layers);
    add_dirs(digest, spec->work_fds, spec->n_work);
    for (gsize i = 0; i < spec->n_mounts; i++) {
        digest_add_str(digest, spec->mounts[i].path);
        add_dirs(digest, &spec->mounts[i].dir_fd, 1);
    }
    return digest_finish(digest);
}

/* What a reset cannot make as new is opened anew each time. */
static gboolean can_be_warm(const BoxSpec *spec)
{
    return spec->root_upper_fd <= 0 && spec->work_upper_fd <= 0 && spec->snapshot == NULL &&
           spec->net == BOX_NET_NONE;
}

static gboolean is_healthy(const Box *box)
{
    GPollFD polled = {.fd = box->pidfd, .events = G_IO_IN};
    return !box->is_used_up && box->n_running == 0 &&
           cgroup_usage(box->cgroup).oom_kills == box->oom_kills && g_poll(&polled, 1, 0) == 0;
}

static Place *find_idle(BoxPool *pool, const char *key)
{
    for (guint i = 0; i < pool->n_places; i++) {
        Place *place = &pool->places[i];
        if (place->box == NULL || place->is_taken || !g_str_equal(place->key, key))
            continue;
        if (is_healthy(place->box))
            return place;
        retire(place);
    }
    return NULL;
}

/* A free place, made so if need be by the box that has been idle the longest. */
static Place *find_room(BoxPool *pool)
{
    Place *oldest = NULL;
    for (guint i = 0; i < pool->n_places; i++) {
        Place *place = &pool->places[i];
        if (place->box == NULL)
            return place;
        if (!place->is_taken && (oldest == NULL || place->given_at < oldest->given_at))
            oldest = place;
    }
    if (oldest != NULL)
        retire(oldest);
    return oldest;
}

Box *box_pool_take(BoxPool *pool, const BoxSpec *spec, const char *tenant, GError **error)
{
    g_autofree char *key = key_of(spec, tenant);
    Place *place = can_be_warm(spec) ? find_idle(pool, key) : NULL;
    if (place == NULL) {
        BoxSpec own = *spec;
        place = find_room(pool);
        if (place == NULL) {
            error_set(error, ASSAY_ERROR_LIMIT, "all %u boxes of the pool are in use",
                      pool->n_places);
            return NULL;
        }
        own.slot = pool->slot_first + (guint)(place - pool->places);
        place->box = box_open(&own, error);
        if (place->box == NULL)
            return NULL;
        place->key = g_steal_pointer(&key);
        place->uses = can_be_warm(spec) ? 0 : pool->uses_max;
        pool->n_opened++;
    }
    place->uses++;
    place->is_taken = TRUE;
    return place->box;
}

void box_pool_give(BoxPool *pool, Box *box)
{
    guint i = 0;
    while (i < pool->n_places && pool->places[i].box != box)
        i++;
    g_assert(i < pool->n_places && pool->places[i].is_taken);
    Place *place = &pool->places[i];
    place->is_taken = FALSE;
    place->given_at = ++pool->clock;
    if (place->uses >= pool->uses_max || !is_healthy(box) || !box_reset(box, NULL))
        retire(place);
}

guint box_pool_idle(const BoxPool *pool)
{
    guint n = 0;
    for (guint i = 0; i < pool->n_places; i++)
        n += pool->places[i].box != NULL && !pool->places[i].is_taken;
    return n;
}

guint box_pool_opened(const BoxPool *pool)
{
    return pool->n_opened;
}
