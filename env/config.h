/*
 * Configuration: one table of keys; values from flags, ASSAY_* variables, a key file, defaults.
 *
 *     g_autoptr(Config) config = config_load(&argc, &argv, error);
 *     config_int(config, CONFIG_WORKERS)
 */
#pragma once

#include <glib.h>

typedef enum ConfigKey {
    CONFIG_STATE = 0,
    CONFIG_SOCKET,
    CONFIG_WORKERS,
    CONFIG_WORKER_PROGRAM,
    CONFIG_ENVIRONMENTS,
    CONFIG_REPOS,
    CONFIG_ALLOW_DEGRADED,
    CONFIG_ATTEMPTS_MAX,
    CONFIG_WALL_S,
    CONFIG_MEM_MIB,
    CONFIG_PIDS,
    CONFIG_DISK_MIB,
    CONFIG_OVERHEAD_S,
    CONFIG_DRAIN_S,
    CONFIG_QUEUED_MAX,
    CONFIG_DISK_FLOOR_MIB,
    CONFIG_IMAGES_MIB,
    CONFIG_EPISODES_MAX,
    CONFIG_EPISODE_HOSTS,
    CONFIG_EPISODE_BOXES,
    CONFIG_KEY_COUNT,
} ConfigKey;

typedef enum ConfigType { CONFIG_TEXT = 0, CONFIG_INT, CONFIG_BOOL } ConfigType;

typedef struct ConfigInfo {
    const char *name; /* "wall_s": flag --wall-s, variable ASSAY_WALL_S, key wall_s in [assayd] */
    ConfigType type;
    gint64 min, max;      /* CONFIG_INT */
    const char *fallback; /* NULL: computed or none */
    const char *help;     /* with the unit */
} ConfigInfo;
extern const ConfigInfo config_infos[CONFIG_KEY_COUNT];

typedef struct Config Config;

/* Reads everything; removes the flags it knows from argv. `argv` may be NULL (no flags). Unknown
 * keys of the file and values out of range are ASSAY_ERROR_INPUT, with a suggestion. */
Config *config_load(int *argc, char ***argv, GError **error);
void config_free(Config *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Config, config_free)

/* "" when unset; borrowed. */
const char *config_text(const Config *config, ConfigKey key);
gint64 config_int(const Config *config, ConfigKey key);
gboolean config_bool(const Config *config, ConfigKey key);
/* Where the value came from: "flag", "ASSAY_WALL_S", the file's path, "default". */
const char *config_origin(const Config *config, ConfigKey key);
/* Checks and sets one value by text. */
gboolean config_set(Config *config, ConfigKey key, const char *value, const char *origin,
                    GError **error);

/* One line per key: flag, type, range, default, help. */
char *config_help(void);
