/*
 * Images as environments.
 *
 * SWE-bench's images keep the repository, with what was built in it, in /testbed. What was built
 * is needed, the history there is not ours: it may hold what a task hides. So the image's /testbed
 * lies under the checkout, with a layer between that hides its .git.
 *
 * Invariant: descriptors of layers stay open as long as the EnvLayers, which keeps them from being
 * collected.
 *
 * Not here: recipes over an image (env_build.c).
 */
#include "env/env_image.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "sandbox/image.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define TESTBED    "testbed"
#define OPAQUE     "user.overlay.opaque"
#define OWN_LAYERS 3 /* mask, checkout, install layer */

static Depot *depot_of(const char *state_dir, GError **error)
{
    g_autofree char *dir = g_build_filename(state_dir, "images", NULL);
    return depot_open(dir, 0, error);
}

static gboolean is_opaque(int fd)
{
    char value;
    return fgetxattr(fd, OPAQUE, &value, 1) == 1;
}

/* The /testbed of each layer that shows in the image, topmost first. */
static gsize testbeds_open(const EnvLayers *layers, int *ret_fds)
{
    gsize n = 0;
    for (gsize i = 0; i < layers->n_root; i++) {
        int fd =
            openat(layers->root_fds[i], TESTBED, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            break; /* a whiteout, or something else that hides what is below */
        ret_fds[n++] = fd;
        if (is_opaque(fd))
            break;
    }
    return n;
}

/* STATE/envs/.mask: nothing but an opaque .git. */
static int mask_open(const char *state_dir, GError **error)
{
    g_autofree char *envs = g_build_filename(state_dir, "envs", NULL);
    if (g_mkdir_with_parents(envs, 0711) < 0) {
        error_set_errno(error, errno, "mkdir %s", envs);
        return -1;
    }
    AUTO_FD envs_fd = open(envs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD mask = envs_fd < 0 ? -1 : tree_open_dir(envs_fd, ".mask", 0755, error);
    AUTO_FD git = mask < 0 ? -1 : tree_open_dir(mask, ".git", 0755, error);
    if (git < 0 || !tree_chown(envs_fd, ".mask", box_store_uid(), box_store_gid(), error))
        return -1;
    if (fsetxattr(git, OPAQUE, "y", 1, 0) < 0) {
        error_set_errno(error, errno, "hide an image's .git: %s", envs);
        return -1;
    }
    return fd_take(&mask);
}

static gboolean testbed_push(const char *state_dir, EnvLayers *layers, GError **error)
{
    int fds[ENV_LAYERS_MAX];
    gsize n = testbeds_open(layers, fds);
    if (n == 0)
        return TRUE;
    for (gsize i = n; i-- > 0;)
        env_lower_push(layers->work_fds, &layers->n_work, fds[i]);
    if (n + OWN_LAYERS > ENV_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "/testbed is in more than %d layers",
                         ENV_LAYERS_MAX - OWN_LAYERS);
    int mask = mask_open(state_dir, error);
    if (mask < 0)
        return FALSE;
    env_lower_push(layers->work_fds, &layers->n_work, mask);
    return TRUE;
}

static gboolean image_use(Depot *depot, const char *state_dir, const char *name, EnvLayers *layers,
                          GError **error)
{
    g_autoptr(Image) image = image_get(depot, name, error);
    if (image == NULL) {
        if (error != NULL && g_error_matches(*error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
            g_clear_error(error);
            error_set(error, ASSAY_ERROR_NOT_FOUND,
                      "the image %s is not here; assay image pull %s brings it", name, name);
        }
        return FALSE;
    }
    if (!image_layers_open(depot, image, layers->root_fds, &layers->n_root, error))
        return FALSE;
    layers->envp = image_config_envp(image, 0);
    layers->image_id = g_strdup(image->id);
    return testbed_push(state_dir, layers, error);
}

gboolean env_image_open(const char *state_dir, const char *image, EnvLayers *layers, GError **error)
{
    G_STATIC_ASSERT(ENV_LAYERS_MAX >= IMAGE_LAYERS_MAX);
    g_autoptr(Depot) depot = depot_of(state_dir, error);
    return depot != NULL && image_use(depot, state_dir, image, layers, error);
}

char *env_image_id(const char *state_dir, const char *image)
{
    g_autoptr(Depot) depot = depot_of(state_dir, NULL);
    g_autoptr(Image) found = depot == NULL ? NULL : image_get(depot, image, NULL);
    return g_strdup(found != NULL ? found->id : "");
}

char *env_image_key(const char *recipe, const char *image_id)
{
    if (image_id == NULL)
        return g_strdup(recipe);
    g_autoptr(Digest) digest = digest_new("assay.environment-image.v1");
    digest_add_str(digest, recipe);
    digest_add_str(digest, image_id);
    return digest_finish(digest);
}
