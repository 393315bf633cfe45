/*
 * The table of configuration keys and the four places that a value comes from.
 *
 * 1. One row makes the flag, the variable, the key of the file, the range check and the help.
 * 2. flag > ASSAY_NAME > $XDG_CONFIG_HOME/assay/assayd.conf (group [assayd]) > default.
 * 3. An unknown key or a bad value is an error: a typo in a limit must never be silent.
 */
#include "env/config.h"

#include "base/error.h"
#include "base/json.h"

#include <string.h>
#include <unistd.h>

#define CONFIG_GROUP "assayd"

/* clang-format off */
const ConfigInfo config_infos[CONFIG_KEY_COUNT] = {
    [CONFIG_STATE] = {"state", CONFIG_TEXT, 0, 0, NULL,
     "state directory (else $XDG_STATE_HOME/assay)"},
    [CONFIG_SOCKET] = {"socket", CONFIG_TEXT, 0, 0, NULL,
     "socket path (else $XDG_RUNTIME_DIR/assay/api.sock or STATE/run/api.sock)"},
    [CONFIG_WORKERS] = {"workers", CONFIG_INT, 1, 256, NULL,
     "grades at the same time (else the number of cores)"},
    [CONFIG_WORKER_PROGRAM] = {"worker_program", CONFIG_TEXT, 0, 0, NULL,
     "the worker (else assay-worker beside assayd)"},
    [CONFIG_ENVIRONMENTS] = {"environments", CONFIG_TEXT, 0, 0, "",
     "environments file used when a request names none"},
    [CONFIG_REPOS] = {"repos", CONFIG_TEXT, 0, 0, "",
     "directory of repository mirrors, or a file that maps them"},
    [CONFIG_ALLOW_DEGRADED] = {"allow_degraded", CONFIG_BOOL, 0, 0, "false",
     "permit boxes without namespaces"},
    [CONFIG_ATTEMPTS_MAX] = {"attempts_max", CONFIG_INT, 1, 10, "3",
     "starts of one grade before it is failed"},
    [CONFIG_WALL_S] = {"wall_s", CONFIG_INT, 1, 14400, "1800",
     "wall limit of one test run, seconds"},
    [CONFIG_MEM_MIB] = {"mem_mib", CONFIG_INT, 16, 1048576, "4096", "memory limit of one box, MiB"},
    [CONFIG_PIDS] = {"pids", CONFIG_INT, 8, 65536, "512", "process limit of one box"},
    [CONFIG_DISK_MIB] = {"disk_mib", CONFIG_INT, 16, 1048576, "4096",
     "writable layer limit of one box, MiB"},
    [CONFIG_OVERHEAD_S] = {"overhead_s", CONFIG_INT, 1, 86400, "1800",
     "what a grade may take beyond wall_s before its worker is killed, seconds"},
    [CONFIG_DRAIN_S] = {"drain_s", CONFIG_INT, 0, 3600, "60",
     "how long SIGTERM waits for running grades, seconds"},
    [CONFIG_QUEUED_MAX] = {"queued_max", CONFIG_INT, 1, 10000000, "100000",
     "queued grades before 429"},
    [CONFIG_DISK_FLOOR_MIB] = {"disk_floor_mib", CONFIG_INT, 0, 1048576, "256",
     "free disk below which no grade starts, MiB"},
    [CONFIG_IMAGES_MIB] = {"images_mib", CONFIG_INT, 0, 1073741824, "0",
     "quota of the image store, MiB; 0: none"},
    [CONFIG_EPISODES_MAX] = {"episodes_max", CONFIG_INT, 1, 1000000, "1024",
     "open episodes before 429"},
    [CONFIG_EPISODE_HOSTS] = {"episode_hosts", CONFIG_INT, 1, 16, "2",
     "processes that hold open episodes"},
    [CONFIG_EPISODE_BOXES] = {"episode_boxes", CONFIG_INT, 1, 700, "32",
     "episodes that can be in a box at the same time"},
};
/* clang-format on */

struct Config {
    char *values[CONFIG_KEY_COUNT];
    gint64 numbers[CONFIG_KEY_COUNT];
    char *origins[CONFIG_KEY_COUNT];
};

static int key_find(const char *name)
{
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        if (strcmp(config_infos[i].name, name) == 0)
            return i;
    }
    return -1;
}

static gboolean key_unknown(const char *name, const char *origin, GError **error)
{
    const char *names[CONFIG_KEY_COUNT + 1] = {NULL};
    for (int i = 0; i < CONFIG_KEY_COUNT; i++)
        names[i] = config_infos[i].name;
    const char *near = word_nearest(name, names);
    return error_set(error, ASSAY_ERROR_INPUT, "%s: unknown key %s%s%s%s", origin, name,
                     near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                     near != NULL ? "?" : "");
}

static gboolean bool_parse(const char *text, gint64 *ret)
{
    static const char *const yes[] = {"true", "yes", "1", NULL};
    static const char *const no[] = {"false", "no", "0", NULL};
    *ret = g_strv_contains(yes, text);
    return *ret || g_strv_contains(no, text);
}

gboolean config_set(Config *config, ConfigKey key, const char *value, const char *origin,
                    GError **error)
{
    const ConfigInfo *info = &config_infos[key];
    gint64 number = 0;
    if (info->type == CONFIG_BOOL && !bool_parse(value, &number))
        return error_set(error, ASSAY_ERROR_INPUT, "%s: %s is \"%s\"; it must be true or false",
                         origin, info->name, value);
    if (info->type == CONFIG_INT &&
        !g_ascii_string_to_signed(value, 10, info->min, info->max, &number, NULL))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%s: %s is \"%s\"; it must be between %" G_GINT64_FORMAT
                         " and %" G_GINT64_FORMAT,
                         origin, info->name, value, info->min, info->max);
    g_free(config->values[key]);
    config->values[key] = g_strdup(value);
    config->numbers[key] = number;
    g_free(config->origins[key]);
    config->origins[key] = g_strdup(origin);
    return TRUE;
}

static gboolean config_load_file(Config *config, GError **error)
{
    g_autofree char *path = g_build_filename(g_get_user_config_dir(), "assay", "assayd.conf", NULL);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return TRUE;
    g_autoptr(GKeyFile) file = g_key_file_new();
    if (!g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, error)) {
        g_prefix_error(error, "%s: ", path);
        return FALSE;
    }
    g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);
    for (guint i = 0; groups[i] != NULL; i++) {
        if (strcmp(groups[i], CONFIG_GROUP) != 0)
            return error_set(error, ASSAY_ERROR_INPUT, "%s: unknown group [%s]; use [%s]", path,
                             groups[i], CONFIG_GROUP);
    }
    g_auto(GStrv) keys = g_key_file_get_keys(file, CONFIG_GROUP, NULL, NULL);
    for (guint i = 0; keys != NULL && keys[i] != NULL; i++) {
        int key = key_find(keys[i]);
        if (key < 0)
            return key_unknown(keys[i], path, error);
        g_autofree char *value = g_key_file_get_string(file, CONFIG_GROUP, keys[i], NULL);
        if (!config_set(config, (ConfigKey)key, value != NULL ? value : "", path, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean config_load_variables(Config *config, GError **error)
{
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        g_autofree char *upper = g_ascii_strup(config_infos[i].name, -1);
        g_autofree char *name = g_strconcat("ASSAY_", upper, NULL);
        const char *value = g_getenv(name);
        if (value != NULL && value[0] != '\0' &&
            !config_set(config, (ConfigKey)i, value, name, error))
            return FALSE;
    }
    return TRUE;
}

/* --wall-s 5 or --wall-s=5; a boolean flag without a value is true. */
static gboolean config_load_flags(Config *config, int *argc, char ***argv, GError **error)
{
    int kept = 1;
    for (int i = 1; i < *argc; i++) {
        char *arg = (*argv)[i];
        if (!g_str_has_prefix(arg, "--")) {
            (*argv)[kept++] = arg;
            continue;
        }
        g_autofree char *name = g_strdup(arg + 2);
        char *equals = strchr(name, '=');
        if (equals != NULL)
            *equals = '\0';
        g_strdelimit(name, "-", '_');
        int key = key_find(name);
        if (key < 0) {
            (*argv)[kept++] = arg;
            continue;
        }
        const char *value = equals != NULL ? equals + 1 : NULL;
        if (value == NULL && config_infos[key].type == CONFIG_BOOL)
            value = "true";
        if (value == NULL && i + 1 < *argc)
            value = (*argv)[++i];
        if (value == NULL)
            return error_set(error, ASSAY_ERROR_INPUT, "%s: needs a value", arg);
        if (!config_set(config, (ConfigKey)key, value, "flag", error))
            return FALSE;
    }
    *argc = kept;
    return TRUE;
}

/* What the defaults that depend on the machine are. */
static gboolean config_complete(Config *config, GError **error)
{
    if (config->values[CONFIG_STATE] == NULL) {
        g_autofree char *state = g_build_filename(g_get_user_state_dir(), "assay", NULL);
        if (!config_set(config, CONFIG_STATE, state, "default", error))
            return FALSE;
    }
    if (config->values[CONFIG_SOCKET] == NULL) {
        const char *runtime = g_getenv("XDG_RUNTIME_DIR");
        gboolean own_state = strcmp(config->origins[CONFIG_STATE], "default") != 0;
        g_autofree char *path =
            runtime != NULL && runtime[0] != '\0' && !own_state
                ? g_build_filename(runtime, "assay", "api.sock", NULL)
                : g_build_filename(config->values[CONFIG_STATE], "run", "api.sock", NULL);
        if (!config_set(config, CONFIG_SOCKET, path, "default", error))
            return FALSE;
    }
    if (config->values[CONFIG_WORKERS] == NULL) {
        g_autofree char *n = g_strdup_printf("%u", CLAMP(g_get_num_processors(), 1, 256));
        if (!config_set(config, CONFIG_WORKERS, n, "default", error))
            return FALSE;
    }
    if (config->values[CONFIG_WORKER_PROGRAM] == NULL) {
        g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
        g_autofree char *dir = g_path_get_dirname(self != NULL ? self : "./x");
        g_autofree char *beside = g_build_filename(dir, "assay-worker", NULL);
        g_autofree char *path =
            g_file_test(beside, G_FILE_TEST_IS_EXECUTABLE)
                ? g_strdup(beside)
                : g_build_filename(dir, "..", "libexec", "assay", "assay-worker", NULL);
        if (!config_set(config, CONFIG_WORKER_PROGRAM, path, "default", error))
            return FALSE;
    }
    return TRUE;
}

Config *config_load(int *argc, char ***argv, GError **error)
{
    g_autoptr(Config) config = g_new0(Config, 1);
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        if (config_infos[i].fallback != NULL &&
            !config_set(config, (ConfigKey)i, config_infos[i].fallback, "default", error))
            return NULL;
    }
    if (!config_load_file(config, error) || !config_load_variables(config, error) ||
        (argv != NULL && !config_load_flags(config, argc, argv, error)) ||
        !config_complete(config, error))
        return NULL;
    return g_steal_pointer(&config);
}

void config_free(Config *config)
{
    if (config == NULL)
        return;
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        g_free(config->values[i]);
        g_free(config->origins[i]);
    }
    g_free(config);
}

const char *config_text(const Config *config, ConfigKey key)
{
    return config->values[key] != NULL ? config->values[key] : "";
}

gint64 config_int(const Config *config, ConfigKey key)
{
    return config->numbers[key];
}

gboolean config_bool(const Config *config, ConfigKey key)
{
    return config->numbers[key] != 0;
}

const char *config_origin(const Config *config, ConfigKey key)
{
    return config->origins[key] != NULL ? config->origins[key] : "default";
}

char *config_help(void)
{
    GString *text = g_string_new(NULL);
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        const ConfigInfo *info = &config_infos[i];
        g_autofree char *flag = g_strdelimit(g_strdup(info->name), "_", '-');
        g_string_append_printf(text, "  --%-16s %s", flag, info->help);
        if (info->type == CONFIG_INT)
            g_string_append_printf(text, " [%" G_GINT64_FORMAT "-%" G_GINT64_FORMAT "]", info->min,
                                   info->max);
        if (info->fallback != NULL && info->fallback[0] != '\0')
            g_string_append_printf(text, " (default %s)", info->fallback);
        g_string_append_c(text, '\n');
    }
    return g_string_free(text, FALSE);
}
