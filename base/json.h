/*
 * jansson, strictly: duplicate keys refused, errors that say where.
 *
 *     g_autoptr(json_t) row = json_parse(line, len, error);
 *     const char *repo = json_want_str(row, "repo", error);      "field repo: missing"
 */
#pragma once

#include <glib.h>
#include <jansson.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_t, json_decref)

/* Parses one value of exactly `len` bytes. Error: "line L column C: why", ASSAY_ERROR_INPUT. */
json_t *json_parse(const char *text, gsize len, GError **error);

/* Serialises compactly, UTF-8; never fails for values made by json_parse. */
char *json_print(const json_t *value);

/* The string at KEY, borrowed; missing or of another type is an error that names the field. */
const char *json_want_str(const json_t *object, const char *key, GError **error);

/* The string at KEY, borrowed, or `fallback` when absent or null; another type is an error
 * (returns NULL with `error` set, so pass a non-NULL fallback to tell the two apart). */
const char *json_opt_str(const json_t *object, const char *key, const char *fallback,
                         GError **error);

/* The integer at KEY, or `fallback` when absent or null. */
gboolean json_opt_int(const json_t *object, const char *key, gint64 min, gint64 max,
                      gint64 fallback, gint64 *ret_value, GError **error);

/* Refuses any key of `object` that is not in the NULL-terminated list; suggests the nearest. */
gboolean json_only_keys(const json_t *object, const char *const *keys, GError **error);

/* The name in the NULL-terminated list that is nearest to `word` by edit distance, or NULL when
 * none is near. For "did you mean". */
const char *word_nearest(const char *word, const char *const *words);
