/*
 * Building and opening environment layers.
 *
 * Invariants:
 *   1. A layer directory under its final name is complete (renamed after the work) and stays so.
 *   2. Setup commands run in a box like any other command; only here may it have the network,
 *      or with `egress` the part of it that the recipe names.
 *   3. Two processes that need the same layer build it once (lock per digest).
 *
 * Not here: what the recipe says (tasks/environment.c).
 */
#include "env/env_build.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"
#include "env/env_image.h"
#include "env/python.h"
#include "tasks/repo.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define TESTBED       "/opt/miniconda3/envs/testbed"
#define BUILD_WALL_MS (3600u * 1000)
#define BUILD_MEM     (8ull << 30)

/* What rows source: enough of conda for `conda activate testbed`. */
static const char activate_script[] =
    "# Assay's stand-in for conda's activate: one environment, testbed.\n"
    "conda() {\n"
    "    if [ \"${1:-}\" = activate ]; then\n"
    "        CONDA_DEFAULT_ENV=\"${2:-testbed}\"\n"
    "        CONDA_PREFIX=\"/opt/miniconda3/envs/$CONDA_DEFAULT_ENV\"\n"
    "        VIRTUAL_ENV=\"$CONDA_PREFIX\"\n"
    "        case \":$PATH:\" in\n"
    "        *\":$CONDA_PREFIX/bin:\"*) ;;\n"
    "        *) PATH=\"$CONDA_PREFIX/bin:$PATH\" ;;\n"
    "        esac\n"
    "        export CONDA_DEFAULT_ENV CONDA_PREFIX VIRTUAL_ENV PATH\n"
    "        hash -r\n"
    "    fi\n"
    "}\n";

/* Variables of ours that a build may need to reach package indexes; never part of a grade. */
static const char *const passed_names[] = {
    "PIP_INDEX_URL",      "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST",
    "http_proxy",         "https_proxy",         "no_proxy",
    "HTTP_PROXY",         "HTTPS_PROXY",         "NO_PROXY",
    "SSL_CERT_FILE",      "REQUESTS_CA_BUNDLE",  "PIP_CERT",
    "npm_config_registry"};

/* A layer being built. */
typedef struct Build {
    const EnvHost *host;
    const Environment *env;
    const char *kind; /* "layer" or "install" */
    const char *digest;
    const HostPython *python; /* NULL: none asked for */
    EnvLayers *below;         /* what is already there */
    gboolean with_work;       /* keep what is written to /testbed as well */
} Build;

void env_layers_free(EnvLayers *layers)
{
    if (layers == NULL)
        return;
    for (gsize i = 0; i < layers->n_root; i++)
        close(layers->root_fds[i]);
    for (gsize i = 0; i < layers->n_layers; i++)
        close(layers->layer_fds[i]);
    for (gsize i = 0; i < layers->n_work; i++)
        close(layers->work_fds[i]);
    for (gsize i = 0; i < layers->n_mounts; i++) {
        close(layers->mounts[i].dir_fd);
        g_free((char *)(gsize)layers->mounts[i].path);
    }
    g_strfreev(layers->envp);
    g_free(layers->image_id);
    g_free(layers);
}

EnvLayers *env_for_task(const EnvHost *host, const Environment *env, const Task *task,
                        const char *repos, char **ret_checkout, GError **error)
{
    const RepoOwner owner = {box_store_uid(), box_store_gid()};
    *ret_checkout = repo_checkout(host->state_dir, task, repos, &owner, error);
    return *ret_checkout != NULL ? env_ensure(host, env, *ret_checkout, error) : NULL;
}

void env_layers_apply(const EnvLayers *layers, BoxSpec *spec)
{
    spec->root_fds = layers->root_fds;
    spec->n_root = layers->n_root;
    spec->layer_fds = layers->layer_fds;
    spec->n_layers = layers->n_layers;
    spec->work_fds = layers->work_fds;
    spec->n_work = layers->n_work;
    spec->mounts = layers->mounts;
    spec->n_mounts = layers->n_mounts;
}

static gboolean dir_open(const char *path, int *ret_fd, GError **error)
{
    *ret_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *ret_fd >= 0 ? TRUE : error_set_errno(error, errno, "open %s", path);
}

/* "upper" and "work" below DIR/NAME, owned as boxes want it. */
static gboolean upper_make(int dir_fd, const char *name, int *ret_fd, GError **error)
{
    AUTO_FD fd = tree_open_dir(dir_fd, name, 0755, error);
    if (fd < 0)
        return FALSE;
    for (int i = 0; i < 2; i++) {
        AUTO_FD sub = tree_open_dir(fd, i == 0 ? "upper" : "work", 0755, error);
        if (sub < 0)
            return FALSE;
    }
    if (!tree_chown(dir_fd, name, box_store_uid(), box_store_gid(), error))
        return FALSE;
    *ret_fd = fd_take(&fd);
    return TRUE;
}

static gboolean has_egress(const Environment *env)
{
    return env->egress[0] != NULL;
}

static GStrv envp_build(const Build *build)
{
    g_auto(GStrv) envp = g_strdupv(build->below->envp);
    for (gsize i = 0; i < G_N_ELEMENTS(passed_names); i++)
        if (g_getenv(passed_names[i]) != NULL)
            envp = g_environ_setenv(envp, passed_names[i], g_getenv(passed_names[i]), TRUE);
    if (has_egress(build->env)) /* over any proxy of ours */
        return box_envp_proxied((const char *const *)envp);
    return g_steal_pointer(&envp);
}

/* Runs one shell command of a recipe; its output goes to the build's log. */
static gboolean command_run(const Build *build, Box *box, const char *line, int log_fd,
                            GError **error)
{
    const char *argv[] = {"/bin/bash", "-c", line, NULL};
    g_auto(GStrv) envp = envp_build(build);
    const BoxFile activate = {"/opt/miniconda3/bin/activate", activate_script,
                              sizeof activate_script - 1, 0755};
    BoxCommand command = {.argv = argv,
                          .envp = (const char *const *)envp,
                          .files = &activate,
                          .n_files = build->python != NULL,
                          .merge = TRUE,
                          .tee_fd = build->host->tee_fd,
                          .cancel_fd = build->host->cancel_fd};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, error))
        return FALSE;
    g_autofree char *head = g_strdup_printf("+ %s\n", line);
    gsize len = 0;
    const void *out = result.out != NULL ? g_bytes_get_data(result.out, &len) : NULL;
    if (!fd_write_all(log_fd, head, strlen(head), error) || !fd_write_all(log_fd, out, len, error))
        return FALSE;
    if (result.outcome == BOX_EXITED && result.exit_code == 0)
        return TRUE;
    return error_set(error, ASSAY_ERROR_INPUT, "command \"%s\" %s %d", line,
                     box_outcome_str(result.outcome),
                     result.outcome == BOX_EXITED ? result.exit_code : result.signal);
}

/* The commands of a build, in order. */
static GStrv commands_of(const Build *build)
{
    g_autoptr(GStrvBuilder) lines = g_strv_builder_new();
    const char *shell = build->env->python != NULL
                            ? "set -e; . /opt/miniconda3/bin/activate; conda activate testbed; "
                            : "set -e; ";
    gboolean layer = !build->with_work;
    if (layer && build->python != NULL) {
        g_autofree char *venv =
            g_strdup_printf("%s -m venv --copies " TESTBED, build->python->executable);
        g_strv_builder_add(lines, venv);
    }
    if (layer && build->env->packages[0] != NULL) {
        g_autoptr(GString) pip = g_string_new(shell);
        g_string_append(pip, "python3 -m pip install --no-cache-dir");
        for (char **name = build->env->packages; *name != NULL; name++) {
            g_autofree char *quoted = g_shell_quote(*name);
            g_string_append_printf(pip, " %s", quoted);
        }
        g_strv_builder_add(lines, pip->str);
    }
    for (char **line = layer ? build->env->setup : build->env->install; *line != NULL; line++) {
        g_autofree char *whole = g_strconcat(shell, *line, NULL);
        g_strv_builder_add(lines, whole);
    }
    return g_strv_builder_end(lines);
}

static gboolean build_in_box(const Build *build, int root_upper, int work_upper, int log_fd,
                             GError **error)
{
    BoxSpec spec = {.work_path = "/testbed",
                    .net = has_egress(build->env) ? BOX_NET_PROXY : BOX_NET_HOST,
                    .egress = {.allow = (const char *const *)build->env->egress, .log_fd = log_fd},
                    .slot = build->host->slot,
                    .limits = box_limits_default(),
                    .allow_degraded = build->host->allow_degraded,
                    .root_upper_fd = root_upper,
                    .work_upper_fd = work_upper};
    spec.limits.wall_ms = BUILD_WALL_MS;
    spec.limits.cpu_ms = 0;
    spec.limits.idle_ms = 0;
    spec.limits.mem_bytes = BUILD_MEM;
    spec.limits.file_bytes = 0;
    env_layers_apply(build->below, &spec);
    g_autoptr(Box) box = box_open(&spec, error);
    if (box == NULL)
        return FALSE;
    g_auto(GStrv) lines = commands_of(build);
    for (char **line = lines; *line != NULL; line++)
        if (!command_run(build, box, *line, log_fd, error))
            return FALSE;
    return TRUE;
}

static gboolean meta_write(const Build *build, int dir_fd, GError **error)
{
    g_autoptr(json_t) meta =
        json_pack("{s:s, s:s, s:s, s:I, s:s*, s:s*}", "name", build->env->name, "kind", build->kind,
                  "digest", build->digest, "built_ms", (json_int_t)clock_wall_ms(), "python",
                  build->python != NULL ? build->python->version : NULL, "prefix",
                  build->python != NULL ? build->python->prefix : NULL);
    g_autofree char *text = json_print(meta);
    AUTO_FD fd = openat(dir_fd, "meta.json", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd >= 0 ? fd_write_all(fd, text, strlen(text), error)
                   : error_set_errno(error, errno, "create meta.json");
}

/* Builds into a temporary directory of `envs`; the caller renames it. A failed build leaves its log
 * as envs/DIGEST.failed.log. */
static gboolean build_make(const Build *build, const char *envs, int envs_fd, const char *tmp,
                           GError **error)
{
    g_autofree char *failed = g_strdup_printf("%s/%s.failed.log", envs, build->digest);
    AUTO_FD dir_fd = tree_open_dir(envs_fd, tmp, 0711, error);
    AUTO_FD root = -1, work = -1;
    if (dir_fd < 0 || !upper_make(dir_fd, "root", &root, error) ||
        (build->with_work && !upper_make(dir_fd, "work", &work, error)))
        return FALSE;
    AUTO_FD log_fd = openat(dir_fd, "log", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log_fd < 0)
        return error_set_errno(error, errno, "create the build's log");

    if (!build_in_box(build, root, work, log_fd, error)) {
        g_autofree char *log = g_build_filename(envs, tmp, "log", NULL);
        rename(log, failed);
        g_prefix_error(error, "environment %s (log: %s): ", build->env->name, failed);
        return FALSE;
    }
    unlink(failed);
    return meta_write(build, dir_fd, error) && tree_remove(root, "work", error) &&
           (!build->with_work || tree_remove(work, "work", error));
}

/* The lock of one digest; held while building. */
static int digest_lock(const char *envs, const char *digest, GError **error)
{
    g_autofree char *path = g_strdup_printf("%s/.%s.lock", envs, digest);
    AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        error_set_errno(error, errno, "lock %s", path);
        return -1;
    }
    return fd_take(&fd);
}

/* Makes STATE/envs/DIGEST unless it is there. Returns its path. */
static char *build_ensure(const Build *build, GError **error)
{
    g_autofree char *envs = g_build_filename(build->host->state_dir, "envs", NULL);
    g_autofree char *dir = g_build_filename(envs, build->digest, NULL);
    if (g_mkdir_with_parents(envs, 0711) < 0) {
        error_set_errno(error, errno, "mkdir %s", envs);
        return NULL;
    }
    AUTO_FD lock = digest_lock(envs, build->digest, error);
    AUTO_FD envs_fd = lock >= 0 ? open(envs, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (envs_fd < 0)
        return NULL;
    if (g_file_test(dir, G_FILE_TEST_IS_DIR))
        return g_steal_pointer(&dir);

    g_autofree char *tmp = g_strdup_printf(".%s.tmp", build->digest);
    if (!tree_remove(envs_fd, tmp, error))
        return NULL;
    if (!build_make(build, envs, envs_fd, tmp, error)) {
        tree_remove(envs_fd, tmp, NULL);
        return NULL;
    }
    if (renameat(envs_fd, tmp, envs_fd, build->digest) < 0) {
        error_set_errno(error, errno, "rename %s", dir);
        return NULL;
    }
    return g_steal_pointer(&dir);
}

/* Opens DIR/NAME/upper and puts it on top of the stack. */
static gboolean layer_push(const char *dir, const char *name, int *fds, gsize *n, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, "upper", NULL);
    int fd = -1;
    if (!dir_open(path, &fd, error))
        return FALSE;
    env_lower_push(fds, n, fd);
    return TRUE;
}

/* `envp` (consumed) with what every command of the environment gets. */
static GStrv envp_make(GStrv envp, const Environment *env)
{
    envp = g_environ_setenv(envp, "HOME", "/root", TRUE);
    for (char **pair = env->envp; *pair != NULL; pair++) {
        g_auto(GStrv) halves = g_strsplit(*pair, "=", 2);
        envp = g_environ_setenv(envp, halves[0], halves[1], TRUE);
    }
    return envp;
}

/* What is there before any layer: root, checkout, the host's Python. */
static EnvLayers *layers_begin(const EnvHost *host, const Environment *env,
                               const HostPython *python, const char *checkout, GError **error)
{
    g_autoptr(EnvLayers) layers = g_new0(EnvLayers, 1);
    int fd = -1;
    if (env->image != NULL && !env_image_open(host->state_dir, env->image, layers, error))
        return NULL;
    if (layers->envp == NULL)
        layers->envp = g_strdupv((char **)(gsize)box_envp_default(0));
    layers->envp = envp_make(layers->envp, env);
    if (strcmp(env->base, "host") != 0) {
        if (!dir_open(env->base, &fd, error))
            return NULL;
        env_lower_push(layers->root_fds, &layers->n_root, fd);
    }
    g_autofree char *tree = g_build_filename(checkout, "tree", NULL);
    if (!dir_open(tree, &fd, error))
        return NULL;
    env_lower_push(layers->work_fds, &layers->n_work, fd);
    if (python != NULL && strcmp(python->prefix, "/usr") != 0) {
        if (!dir_open(python->prefix, &fd, error))
            return NULL;
        layers->mounts[layers->n_mounts++] = (BoxMount){fd, g_strdup(python->prefix)};
    }
    return g_steal_pointer(&layers);
}

EnvLayers *env_ensure(const EnvHost *host, const Environment *env, const char *checkout,
                      GError **error)
{
    g_autoptr(HostPython) python = NULL;
    if (env->python != NULL && (python = host_python_find(env->python, error)) == NULL)
        return NULL;
    g_autoptr(EnvLayers) layers = layers_begin(host, env, python, checkout, error);
    if (layers == NULL)
        return NULL;

    g_autofree char *layer_key = env_image_key(env->layer_digest, layers->image_id);
    g_autofree char *key = env_image_key(env->digest, layers->image_id);
    if (python != NULL || env->packages[0] != NULL || env->setup[0] != NULL) {
        const Build build = {host, env, "layer", layer_key, python, layers, FALSE};
        g_autofree char *dir = build_ensure(&build, error);
        if (dir == NULL || !layer_push(dir, "root", layers->layer_fds, &layers->n_layers, error))
            return NULL;
    }
    if (env->install[0] != NULL) {
        const Build build = {host, env, "install", key, python, layers, TRUE};
        g_autofree char *dir = build_ensure(&build, error);
        if (dir == NULL || !layer_push(dir, "root", layers->layer_fds, &layers->n_layers, error) ||
            !layer_push(dir, "work", layers->work_fds, &layers->n_work, error))
            return NULL;
    }
    return g_steal_pointer(&layers);
}

void env_info_free(EnvInfo *info)
{
    if (info == NULL)
        return;
    g_free(info->digest);
    g_free(info->name);
    g_free(info->kind);
    g_free(info);
}

static EnvInfo *info_read(const char *envs, const char *digest)
{
    g_autofree char *dir = g_build_filename(envs, digest, NULL);
    g_autofree char *path = g_build_filename(dir, "meta.json", NULL);
    g_autoptr(GBytes) bytes = file_read(path, 1 << 20, NULL);
    if (bytes == NULL)
        return NULL;
    g_autoptr(json_t) meta =
        json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), NULL);
    AUTO_FD fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EnvInfo *info = g_new0(EnvInfo, 1);
    info->digest = g_strdup(digest);
    info->name = g_strdup(json_string_value(json_object_get(meta, "name")));
    info->kind = g_strdup(json_string_value(json_object_get(meta, "kind")));
    info->built_ms = json_integer_value(json_object_get(meta, "built_ms"));
    info->bytes = fd >= 0 ? tree_bytes(fd) : 0;
    return info;
}

GPtrArray *env_list(const char *state_dir, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func((GDestroyNotify)env_info_free);
    g_autofree char *envs = g_build_filename(state_dir, "envs", NULL);
    if (!g_file_test(envs, G_FILE_TEST_IS_DIR))
        return g_steal_pointer(&list);
    g_autoptr(GDir) dir = g_dir_open(envs, 0, error);
    if (dir == NULL)
        return NULL;
    for (const char *name; (name = g_dir_read_name(dir)) != NULL;) {
        EnvInfo *info = name[0] != '.' ? info_read(envs, name) : NULL;
        if (info != NULL)
            g_ptr_array_add(list, info);
    }
    return g_steal_pointer(&list);
}

guint env_remove(const char *state_dir, const char *digest, GError **error)
{
    g_autoptr(GPtrArray) list = env_list(state_dir, error);
    g_autofree char *envs = g_build_filename(state_dir, "envs", NULL);
    AUTO_FD envs_fd = open(envs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    guint removed = 0;
    for (guint i = 0; list != NULL && envs_fd >= 0 && i < list->len; i++) {
        const EnvInfo *info = list->pdata[i];
        if (!g_str_has_prefix(info->digest, digest))
            continue;
        AUTO_FD lock = digest_lock(envs, info->digest, error);
        if (lock < 0 || !tree_remove(envs_fd, info->digest, error))
            return removed;
        removed++;
    }
    return removed;
}
