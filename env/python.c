/*
 * Finding interpreters on the host, by asking each candidate what it is.
 *
 * Not here: virtual environments (env_build.c makes them, in a box).
 */
#include "env/python.h"

#include "base/error.h"

#include <string.h>

/* Below $HOME: one directory per version, each with bin/. */
static const char *const home_collections[] = {".pyenv/versions", ".local/share/uv/python"};
static const char *const system_dirs[] = {"/usr/local/bin", "/usr/bin"};

void host_python_free(HostPython *python)
{
    if (python == NULL)
        return;
    g_free(python->executable);
    g_free(python->prefix);
    g_free(python->version);
    g_free(python);
}

static void dirs_add_split(GPtrArray *dirs, const char *list)
{
    g_auto(GStrv) parts = g_strsplit(list != NULL ? list : "", ":", -1);
    for (char **part = parts; *part != NULL; part++)
        if (g_path_is_absolute(*part))
            g_ptr_array_add(dirs, g_strdup(*part));
}

static void dirs_add_collection(GPtrArray *dirs, const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    for (const char *name; dir != NULL && (name = g_dir_read_name(dir)) != NULL;)
        g_ptr_array_add(dirs, g_build_filename(path, name, "bin", NULL));
}

/* Asks EXE; NULL when it is not a working Python of that version. */
static HostPython *python_ask(const char *executable, const char *version)
{
    const char *argv[] = {executable, "-I", "-c",
                          "import sys; print(sys.base_prefix); print(sys.version.split()[0])",
                          NULL};
    g_autofree char *out = NULL;
    int status = -1;
    if (!g_file_test(executable, G_FILE_TEST_IS_EXECUTABLE) ||
        !g_spawn_sync("/", (char **)(gsize)argv, NULL, G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &out,
                      NULL, &status, NULL) ||
        status != 0)
        return NULL;
    g_auto(GStrv) lines = g_strsplit(out, "\n", 3);
    g_autofree char *want = g_strconcat(version, ".", NULL);
    if (g_strv_length(lines) < 2 || !g_str_has_prefix(lines[1], want) ||
        !g_path_is_absolute(lines[0]))
        return NULL;
    HostPython *python = g_new0(HostPython, 1);
    g_autofree char *name = g_strconcat("python", version, NULL);
    python->prefix = g_strdup(lines[0]);
    python->executable = g_build_filename(lines[0], "bin", name, NULL);
    python->version = g_strdup(lines[1]);
    return python;
}

HostPython *host_python_find(const char *version, GError **error)
{
    g_autoptr(GPtrArray) dirs = g_ptr_array_new_with_free_func(g_free);
    dirs_add_split(dirs, g_getenv("ASSAY_PYTHONS"));
    for (gsize i = 0; i < G_N_ELEMENTS(home_collections); i++) {
        g_autofree char *path = g_build_filename(g_get_home_dir(), home_collections[i], NULL);
        dirs_add_collection(dirs, path);
    }
    dirs_add_collection(dirs, "/opt");
    dirs_add_split(dirs, g_getenv("PATH"));
    for (gsize i = 0; i < G_N_ELEMENTS(system_dirs); i++)
        g_ptr_array_add(dirs, g_strdup(system_dirs[i]));

    g_autofree char *name = g_strconcat("python", version, NULL);
    for (guint i = 0; i < dirs->len; i++) {
        g_autofree char *path = g_build_filename(dirs->pdata[i], name, NULL);
        HostPython *python = python_ask(path, version);
        if (python != NULL)
            return python;
    }
    error_set(error, ASSAY_ERROR_UNSUPPORTED,
              "no Python %s on this host; install one (pyenv install %s) or name its bin "
              "directory in ASSAY_PYTHONS",
              version, version);
    return NULL;
}
