/*
 * Reading environment files: groups, matching, placeholders, digests.
 *
 * Invariants:
 *   1. The digest covers everything that can change the layer's content, and nothing else.
 *   2. An unknown key is an error, never ignored: a typo must not silently change rewards.
 *
 * Not here: building (env/env_build.c), finding a Python on the host (env/python.c).
 */
#include "tasks/environment.h"

#include "base/digest.h"
#include "base/error.h"

#include <string.h>

#define GROUP_PREFIX "environment "
#define COMMANDS_MAX 64

/* Keys that stand alone; "setup.N", "install.N" and "env.NAME" come on top. */
static const char *const plain_keys[] = {"repo",    "version", "instance", "base",
                                         "image",   "python",  "packages", "prologue",
                                         "protect", "egress",  NULL};
static const char *const dotted_keys[] = {"setup.", "install.", "env.", NULL};

static gboolean key_known(const char *key)
{
    if (g_strv_contains(plain_keys, key))
        return TRUE;
    for (gsize i = 0; dotted_keys[i] != NULL; i++)
        if (g_str_has_prefix(key, dotted_keys[i]) && key[strlen(dotted_keys[i])] != '\0')
            return TRUE;
    return FALSE;
}

static gboolean group_check(GKeyFile *conf, const char *group, GError **error)
{
    if (!g_str_has_prefix(group, GROUP_PREFIX))
        return error_set(error, ASSAY_ERROR_INPUT, "group [%s]: expected [environment NAME]",
                         group);
    if (!g_key_file_has_key(conf, group, "repo", NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "group [%s]: key repo is missing", group);
    g_auto(GStrv) keys = g_key_file_get_keys(conf, group, NULL, NULL);
    for (char **key = keys; *key != NULL; key++) {
        if (key_known(*key))
            continue;
        const char *near = word_nearest(*key, plain_keys);
        return error_set(error, ASSAY_ERROR_INPUT, "group [%s]: unknown key %s; %s%s%s", group,
                         *key, near != NULL ? "did you mean " : "commands are setup.1, install.1",
                         near != NULL ? near : "", near != NULL ? "?" : "");
    }
    if (g_key_file_has_key(conf, group, "image", NULL) &&
        (g_key_file_has_key(conf, group, "base", NULL) ||
         g_key_file_has_key(conf, group, "python", NULL) ||
         g_key_file_has_key(conf, group, "packages", NULL)))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "group [%s]: image stands alone: not with base, python or packages",
                         group);
    return TRUE;
}

static GKeyFile *conf_load(const char *path, GError **error)
{
    g_autoptr(GKeyFile) conf = g_key_file_new();
    gboolean ok = g_key_file_load_from_file(conf, path, G_KEY_FILE_NONE, error);
    g_auto(GStrv) groups = ok ? g_key_file_get_groups(conf, NULL) : NULL;
    for (char **group = groups; ok && *group != NULL; group++)
        ok = group_check(conf, *group, error);
    if (!ok) {
        g_prefix_error(error, "%s: ", path);
        return NULL;
    }
    return g_steal_pointer(&conf);
}

gboolean environment_conf_check(const char *conf_path, GError **error)
{
    g_autoptr(GKeyFile) conf = conf_load(conf_path, error);
    return conf != NULL;
}

/* TRUE when the key is absent or one of its globs matches. */
static gboolean key_matches(GKeyFile *conf, const char *group, const char *key, const char *value)
{
    g_auto(GStrv) globs = g_key_file_get_string_list(conf, group, key, NULL, NULL);
    for (char **glob = globs; glob != NULL && *glob != NULL; glob++)
        if (g_pattern_match_simple(g_strstrip(*glob), value))
            return TRUE;
    return globs == NULL;
}

/* Replaces {version}, {repo}, {instance}, {base_commit}. */
static char *expand(const char *text, const Task *task)
{
    const struct {
        const char *name, *value;
    } words[] = {{"{version}", task->version},
                 {"{repo}", task->repo},
                 {"{instance}", task->instance_id},
                 {"{base_commit}", task->base_commit}};
    g_autoptr(GString) out = g_string_new(text);
    for (gsize i = 0; i < G_N_ELEMENTS(words); i++)
        g_string_replace(out, words[i].name, words[i].value, 0);
    return g_string_free(g_steal_pointer(&out), FALSE);
}

/* As expand(); besides, {instance_id} is the instance as SWE-bench writes it in image names. */
static char *image_read(GKeyFile *conf, const char *group, const Task *task)
{
    g_autofree char *text = g_key_file_get_string(conf, group, "image", NULL);
    if (text == NULL)
        return NULL;
    g_autoptr(GString) id = g_string_new(task->instance_id);
    g_string_replace(id, "__", "_1776_", 0);
    g_string_ascii_down(id);
    g_autofree char *expanded = expand(text, task);
    g_autoptr(GString) out = g_string_new(expanded);
    g_string_replace(out, "{instance_id}", id->str, 0);
    return g_string_free(g_steal_pointer(&out), FALSE);
}

/* PREFIX1, PREFIX2, ... until one is absent. */
static GStrv commands_read(GKeyFile *conf, const char *group, const char *prefix, const Task *task)
{
    g_autoptr(GStrvBuilder) lines = g_strv_builder_new();
    for (int i = 1; i <= COMMANDS_MAX; i++) {
        g_autofree char *key = g_strdup_printf("%s%d", prefix, i);
        g_autofree char *line = g_key_file_get_string(conf, group, key, NULL);
        if (line == NULL)
            break;
        g_autofree char *expanded = expand(line, task);
        g_strv_builder_add(lines, expanded);
    }
    return g_strv_builder_end(lines);
}

static GStrv envp_read(GKeyFile *conf, const char *group, const Task *task)
{
    g_autoptr(GStrvBuilder) pairs = g_strv_builder_new();
    g_auto(GStrv) keys = g_key_file_get_keys(conf, group, NULL, NULL);
    for (char **key = keys; *key != NULL; key++) {
        if (!g_str_has_prefix(*key, "env."))
            continue;
        g_autofree char *value = g_key_file_get_string(conf, group, *key, NULL);
        g_autofree char *expanded = expand(value, task);
        g_autofree char *pair = g_strdup_printf("%s=%s", *key + 4, expanded);
        g_strv_builder_add(pairs, pair);
    }
    return g_strv_builder_end(pairs);
}

/* A ";"-separated list, trimmed and expanded. */
static GStrv list_read(GKeyFile *conf, const char *group, const char *key, const Task *task)
{
    g_auto(GStrv) raw = g_key_file_get_string_list(conf, group, key, NULL, NULL);
    g_autoptr(GStrvBuilder) items = g_strv_builder_new();
    for (char **item = raw; item != NULL && *item != NULL; item++) {
        g_autofree char *expanded = expand(g_strstrip(*item), task);
        if (expanded[0] != '\0')
            g_strv_builder_add(items, expanded);
    }
    return g_strv_builder_end(items);
}

/* "a:443, b:80": commas read better here, and semicolons are the other lists'. */
static GStrv egress_read(GKeyFile *conf, const char *group)
{
    g_autofree char *text = g_key_file_get_string(conf, group, "egress", NULL);
    g_autoptr(GStrvBuilder) rules = g_strv_builder_new();
    g_auto(GStrv) parts = g_strsplit_set(text != NULL ? text : "", ",;", -1);
    for (char **part = parts; *part != NULL; part++)
        if (*g_strstrip(*part) != '\0')
            g_strv_builder_add(rules, *part);
    return g_strv_builder_end(rules);
}

static void digest_list(Digest *digest, GStrv list)
{
    for (char **item = list; item != NULL && *item != NULL; item++)
        digest_add_str(digest, *item);
    digest_add_str(digest, NULL);
}

static void environment_finish(Environment *env, const Task *task)
{
    g_autoptr(Digest) layer = digest_new(ENVIRONMENT_VERSION);
    digest_add_str(layer, env->base);
    digest_add_str(layer, env->python);
    if (env->image != NULL) /* its content counts too: env/env_image.c */
        digest_add_str(layer, env->image);
    digest_list(layer, env->packages);
    digest_list(layer, env->setup);
    if (env->egress != NULL && env->egress[0] != NULL)
        digest_list(layer, env->egress); /* a command may go on without what it could not fetch */
    env->layer_digest = digest_finish(layer);

    g_autoptr(Digest) whole = digest_new(ENVIRONMENT_VERSION);
    digest_add_str(whole, env->layer_digest);
    digest_list(whole, env->install);
    digest_list(whole, env->envp);
    digest_list(whole, env->protect);
    digest_add_str(whole, env->prologue ? "prologue" : "");
    digest_add_str(whole, env->install != NULL && env->install[0] != NULL ? task->base_commit : "");
    env->digest = digest_finish(whole);
}

static Environment *environment_read(GKeyFile *conf, const char *group, const Task *task)
{
    Environment *env = g_new0(Environment, 1);
    env->name = g_strdup(group + strlen(GROUP_PREFIX));
    env->base = g_key_file_get_string(conf, group, "base", NULL);
    if (env->base == NULL)
        env->base = g_strdup("host");
    env->image = image_read(conf, group, task);
    env->python = g_key_file_get_string(conf, group, "python", NULL);
    env->packages = list_read(conf, group, "packages", task);
    env->egress = egress_read(conf, group);
    env->protect = list_read(conf, group, "protect", task);
    env->setup = commands_read(conf, group, "setup.", task);
    env->install = commands_read(conf, group, "install.", task);
    env->envp = envp_read(conf, group, task);
    env->prologue = g_key_file_get_boolean(conf, group, "prologue", NULL);
    environment_finish(env, task);
    return env;
}

static Environment *environment_host(const Task *task)
{
    Environment *env = g_new0(Environment, 1);
    env->name = g_strdup("host");
    env->base = g_strdup("host");
    env->packages = g_new0(char *, 1);
    env->egress = g_new0(char *, 1);
    env->protect = g_new0(char *, 1);
    env->setup = g_new0(char *, 1);
    env->install = g_new0(char *, 1);
    env->envp = g_new0(char *, 1);
    environment_finish(env, task);
    return env;
}

Environment *environment_for(const Task *task, const char *conf_path, GError **error)
{
    if (conf_path == NULL)
        return environment_host(task);
    g_autoptr(GKeyFile) conf = conf_load(conf_path, error);
    if (conf == NULL)
        return NULL;
    g_auto(GStrv) groups = g_key_file_get_groups(conf, NULL);
    for (char **group = groups; *group != NULL; group++)
        if (key_matches(conf, *group, "repo", task->repo) &&
            key_matches(conf, *group, "version", task->version) &&
            key_matches(conf, *group, "instance", task->instance_id))
            return environment_read(conf, *group, task);
    return environment_host(task);
}

void environment_free(Environment *env)
{
    if (env == NULL)
        return;
    g_free(env->name);
    g_free(env->base);
    g_free(env->image);
    g_free(env->python);
    g_strfreev(env->packages);
    g_strfreev(env->egress);
    g_strfreev(env->protect);
    g_strfreev(env->setup);
    g_strfreev(env->install);
    g_strfreev(env->envp);
    g_free(env->layer_digest);
    g_free(env->digest);
    g_free(env);
}
