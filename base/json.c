/*
 * Strict JSON reading on jansson: every error names the field or the place.
 *
 * Not here: what fields mean. Depth is limited by jansson itself (2,048).
 */
#include "base/json.h"

#include "base/error.h"

#include <string.h>

#define KEY_SHOWN 64 /* characters of an unknown key; a longer one is nobody's slip */

json_t *json_parse(const char *text, gsize len, GError **error)
{
    json_error_t why;
    json_t *value = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (value == NULL)
        error_set(error, ASSAY_ERROR_INPUT, "line %d column %d: %s", why.line, why.column,
                  why.text);
    return value;
}

char *json_print(const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    g_assert(text != NULL);
    return text;
}

const char *json_want_str(const json_t *object, const char *key, GError **error)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_string(value))
        return json_string_value(value);
    error_set(error, ASSAY_ERROR_INPUT, "field %s: %s", key,
              value == NULL ? "missing" : "must be a string");
    return NULL;
}

const char *json_opt_str(const json_t *object, const char *key, const char *fallback,
                         GError **error)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value))
        return fallback;
    return json_want_str(object, key, error);
}

gboolean json_opt_int(const json_t *object, const char *key, gint64 min, gint64 max,
                      gint64 fallback, gint64 *ret_value, GError **error)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value)) {
        *ret_value = fallback;
        return TRUE;
    }
    if (!json_is_integer(value))
        return error_set(error, ASSAY_ERROR_INPUT, "field %s: must be an integer", key);
    gint64 number = json_integer_value(value);
    if (number < min || number > max)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field %s: %" G_GINT64_FORMAT " is not between %" G_GINT64_FORMAT
                         " and %" G_GINT64_FORMAT,
                         key, number, min, max);
    *ret_value = number;
    return TRUE;
}

/* Levenshtein distance, two rows. */
static guint word_distance(const char *a, const char *b)
{
    gsize n = strlen(b);
    g_autofree guint *row = g_new(guint, n + 1);
    for (gsize j = 0; j <= n; j++)
        row[j] = (guint)j;
    for (gsize i = 0; a[i] != '\0'; i++) {
        guint diagonal = row[0];
        row[0] = (guint)i + 1;
        for (gsize j = 0; j < n; j++) {
            guint substituted = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = MIN(MIN(row[j], row[j + 1]) + 1, substituted);
        }
    }
    return row[n];
}

const char *word_nearest(const char *word, const char *const *words)
{
    const char *best = NULL;
    guint best_distance = MAX(2, (guint)strlen(word) / 3) + 1;
    for (; *words != NULL; words++) {
        guint distance = word_distance(word, *words);
        if (distance < best_distance) {
            best_distance = distance;
            best = *words;
        }
    }
    return best;
}

gboolean json_only_keys(const json_t *object, const char *const *keys, GError **error)
{
    for (void *it = json_object_iter((json_t *)(gsize)object); it != NULL;
         it = json_object_iter_next((json_t *)(gsize)object, it)) {
        const char *key = json_object_iter_key(it);
        if (g_strv_contains(keys, key))
            continue;
        g_autofree char *shown = g_utf8_substring(key, 0, MIN(KEY_SHOWN, g_utf8_strlen(key, -1)));
        const char *near = strcmp(shown, key) == 0 ? word_nearest(key, keys) : NULL;
        return error_set(error, ASSAY_ERROR_INPUT, "field %s: unknown%s%s%s", shown,
                         near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                         near != NULL ? "?" : "");
    }
    return TRUE;
}
