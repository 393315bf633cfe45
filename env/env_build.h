/*
 * Environments made real: recipes run in a box, their writes kept as layers.
 *
 *     g_autoptr(EnvLayers) layers = env_ensure(&host, env, checkout_dir, error);
 *     env_layers_apply(layers, &spec);      lowers, mounts
 *
 * STATE/envs/LAYER_DIGEST/{root,meta.json,log}   shared by every task of the recipe
 * STATE/envs/DIGEST/{root,work,meta.json,log}    what `install` wrote for one commit
 */
#pragma once

#include "sandbox/box.h"
#include "tasks/environment.h"

#include <glib.h>

/* Where and as whom to build. */
typedef struct EnvHost {
    const char *state_dir;
    guint slot;
    gboolean allow_degraded;
    int tee_fd;    /* > 0: build output is also written there */
    int cancel_fd; /* > 0: readable means stop */
} EnvHost;

#define ENV_LAYERS_MAX 60 /* of each kind; what a box can stand on */

/* Open descriptors of what a box of this environment stands on. */
typedef struct EnvLayers {
    int root_fds[ENV_LAYERS_MAX]; /* topmost first; none: the host's */
    gsize n_root;
    int layer_fds[ENV_LAYERS_MAX]; /* topmost first */
    gsize n_layers;
    int work_fds[ENV_LAYERS_MAX]; /* topmost first: install layer, checkout, the image's own */
    gsize n_work;
    BoxMount mounts[ENV_LAYERS_MAX];
    gsize n_mounts;
    GStrv envp;     /* complete environment of commands */
    char *image_id; /* of the image that the root is, or NULL */
} EnvLayers;

/* Puts `fd` on top of a stack of lowers. */
static inline void env_lower_push(int *fds, gsize *n, int fd)
{
    g_assert(*n < ENV_LAYERS_MAX);
    for (gsize i = (*n)++; i > 0; i--)
        fds[i] = fds[i - 1];
    fds[0] = fd;
}

void env_layers_free(EnvLayers *layers);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EnvLayers, env_layers_free)

/* Builds what is missing (network allowed) and opens all. `checkout` is repo_checkout()'s
 * directory. A failing setup command is ASSAY_ERROR_INPUT and names the log. */
EnvLayers *env_ensure(const EnvHost *host, const Environment *env, const char *checkout,
                      GError **error);

/* The same from a task: its checkout is made when absent, from `repos` or where it says. */
EnvLayers *env_for_task(const EnvHost *host, const Environment *env, const Task *task,
                        const char *repos, char **ret_checkout, GError **error);

/* Fills root, layers, workspace lowers and mounts of a spec; the spec borrows from `layers`. */
void env_layers_apply(const EnvLayers *layers, BoxSpec *spec);

/* One kept layer, for `assay env ls`. */
typedef struct EnvInfo {
    char *digest, *name, *kind; /* kind: "layer" or "install" */
    guint64 bytes;
    gint64 built_ms;
} EnvInfo;
void env_info_free(EnvInfo *info);
GPtrArray *env_list(const char *state_dir, GError **error);

/* Removes the layers whose digest begins with `digest`. Returns how many; 0 with no error: none. */
guint env_remove(const char *state_dir, const char *digest, GError **error);
