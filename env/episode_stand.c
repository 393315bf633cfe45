/*
 * What the episodes of one task share.
 *
 * Invariants:
 *   1. A stand lives as long as anybody holds it, and while it is made.
 *   2. Only one is made at a time: building boxes have one slot.
 *
 * Not here: checkouts (tasks/repo.h), layers (env_build.c).
 */
#include "env/episode_stand.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/env_build.h"
#include "env/grade_run.h"

#include <glib-unix.h>
#include <string.h>

#define MEM_BYTES  (4096ull << 20)
#define DISK_BYTES (2048ull << 20)

struct EpisodeStand {
    EpisodeStands *stands;
    guint refs;
    char *key;
    Task *task;
    EpisodeStandState state;
    EnvLayers *layers;
    GStrv envp;
    BoxSpec base;
    GError *error;
};

struct EpisodeStands {
    EpisodeStandOptions options;
    char *state_dir, *environments, *repos;
    GHashTable *all;     /* key -> EpisodeStand */
    GThreadPool *makers; /* of one thread, made with the first checkout */
    GAsyncQueue *made;
    int fds[2];
};

EpisodeStands *episode_stands_new(const EpisodeStandOptions *options)
{
    EpisodeStands *stands = g_new0(EpisodeStands, 1);
    stands->options = *options;
    stands->state_dir = g_strdup(options->state_dir);
    stands->environments = g_strdup(options->environments);
    stands->repos = g_strdup(options->repos);
    stands->all = g_hash_table_new(g_str_hash, g_str_equal);
    stands->made = g_async_queue_new();
    gboolean ok = g_unix_open_pipe(stands->fds, FD_CLOEXEC, NULL) &&
                  g_unix_set_fd_nonblocking(stands->fds[0], TRUE, NULL);
    g_assert(ok);
    return stands;
}

void episode_stands_free(EpisodeStands *stands)
{
    if (stands->makers != NULL)
        g_thread_pool_free(stands->makers, FALSE, TRUE);
    episode_stands_hear(stands);
    g_assert(g_hash_table_size(stands->all) == 0);
    g_hash_table_unref(stands->all);
    g_async_queue_unref(stands->made);
    close(stands->fds[0]);
    close(stands->fds[1]);
    g_free(stands->state_dir);
    g_free(stands->environments);
    g_free(stands->repos);
    g_free(stands);
}

int episode_stands_fd(const EpisodeStands *stands)
{
    return stands->fds[0];
}

/* On the maker's thread: only the task is read, only what the loop does not look at is written. */
static gboolean make(EpisodeStand *stand, GError **error)
{
    const EpisodeStands *stands = stand->stands;
    const EnvHost host = {.state_dir = stands->state_dir,
                          .slot = stands->options.slot,
                          .allow_degraded = stands->options.allow_degraded};
    g_autofree char *checkout = NULL;
    g_autoptr(Environment) env = environment_for(stand->task, stands->environments, error);
    stand->layers =
        env != NULL ? env_for_task(&host, env, stand->task, stands->repos, &checkout, error) : NULL;
    if (stand->layers == NULL)
        return FALSE;
    stand->envp = grade_envp(stand->layers);
    stand->base = (BoxSpec){.limits = box_limits_default()};
    stand->base.limits.mem_bytes = MEM_BYTES;
    stand->base.limits.disk_bytes = DISK_BYTES;
    env_layers_apply(stand->layers, &stand->base);
    return TRUE;
}

static void maker(gpointer data, gpointer user_data)
{
    EpisodeStand *stand = data;
    EpisodeStands *stands = user_data;
    make(stand, &stand->error);
    g_async_queue_push(stands->made, stand);
    fd_write_all(stands->fds[1], "", 1, NULL);
}

void episode_stands_hear(EpisodeStands *stands)
{
    char bytes[64];
    EpisodeStand *stand;
    while (read(stands->fds[0], bytes, sizeof bytes) > 0)
        continue;
    while ((stand = g_async_queue_try_pop(stands->made)) != NULL) {
        stand->state = stand->error == NULL ? EPISODE_STAND_READY : EPISODE_STAND_FAILED;
        episode_stand_unref(stand);
    }
}

EpisodeStand *episode_stand_get(EpisodeStands *stands, const char *key, json_t *row, GError **error)
{
    EpisodeStand *stand = g_hash_table_lookup(stands->all, key);
    if (stand != NULL && stand->state != EPISODE_STAND_FAILED) {
        stand->refs++;
        return stand;
    }
    g_autoptr(Task) task = task_from_json(row, error);
    if (task == NULL)
        return NULL;
    stand = g_new0(EpisodeStand, 1);
    *stand = (EpisodeStand){.stands = stands, .refs = 1, .key = g_strdup(key)};
    stand->task = g_steal_pointer(&task);
    g_hash_table_replace(stands->all, stand->key, stand);
    if (stand->task->files != NULL) {
        stand->state = EPISODE_STAND_READY;
        return stand;
    }
    if (stands->makers == NULL)
        stands->makers = g_thread_pool_new(maker, stands, 1, TRUE, NULL);
    stand->refs++;
    g_thread_pool_push(stands->makers, stand, NULL);
    return stand;
}

EpisodeStand *episode_stand_ref(EpisodeStand *stand)
{
    stand->refs++;
    return stand;
}

void episode_stand_unref(EpisodeStand *stand)
{
    if (stand == NULL || --stand->refs > 0)
        return;
    if (g_hash_table_lookup(stand->stands->all, stand->key) == stand)
        g_hash_table_remove(stand->stands->all, stand->key);
    task_free(stand->task);
    env_layers_free(stand->layers);
    g_strfreev(stand->envp);
    g_clear_error(&stand->error);
    g_free(stand->key);
    g_free(stand);
}

EpisodeStandState episode_stand_state(const EpisodeStand *stand)
{
    return stand->state;
}

const GError *episode_stand_error(const EpisodeStand *stand)
{
    return stand->error;
}

const Task *episode_stand_task(const EpisodeStand *stand)
{
    return stand->task;
}

void episode_stand_fill(const EpisodeStand *stand, EpisodeOptions *options)
{
    options->base = stand->layers != NULL ? &stand->base : NULL;
    options->envp = (const char *const *)stand->envp;
}
