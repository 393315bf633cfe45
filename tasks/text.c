/*
 * Text tasks, drawn: a table of makers; rows, splits.
 *
 * Invariants:
 *   1. What is drawn depends on kind, seed and split alone.
 *   2. No text is given out twice by one source, and none is of two splits.
 */
#include "tasks/text.h"

#include "tasks/script.h"
#include "tasks/task.h"
#include "tasks/text_logic.h"
#include "tasks/text_math.h"

#include "base/error.h"

#include <string.h>

#define TRIES_MAX 5000u /* draws in a row that were there before, or of another split */

/* A maker gives {"problem_statement", ...}: all that is the kind's own. */
static const struct {
    const char *kind;
    json_t *(*make)(TextDraw *draw);
} makers[] = {{"math", math_make}, {"logic", logic_make}};

struct TextSource {
    guint maker;
    TextSplit split;
    TextDraw draw;
    GHashTable *seen;
};

static int maker_find(const char *kind)
{
    for (guint i = 0; i < G_N_ELEMENTS(makers); i++)
        if (g_str_equal(makers[i].kind, kind))
            return (int)i;
    return -1;
}

gboolean text_has_kind(const char *kind)
{
    return maker_find(kind) >= 0;
}

TextSource *text_source_new(const char *kind, guint64 seed, TextSplit split, GError **error)
{
    int maker = maker_find(kind);
    if (maker < 0) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "there is no kind of text task %s", kind);
        return NULL;
    }
    TextSource *source = g_new0(TextSource, 1);
    source->maker = (guint)maker;
    source->split = split;
    source->draw.state = seed;
    source->seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    return source;
}

void text_source_free(TextSource *source)
{
    if (source == NULL)
        return;
    g_hash_table_unref(source->seen);
    g_free(source);
}

/* splitmix64, as in repair.c. */
guint text_below(TextDraw *draw, guint below)
{
    guint64 z = draw->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (guint)((((z ^ (z >> 31)) >> 32) * below) >> 32);
}

int text_between(TextDraw *draw, int from, int to)
{
    return from + (int)text_below(draw, (guint)(to - from + 1));
}

/* Of ten: seven to train, one to tune, two held out. */
static TextSplit split_of(const char *digest)
{
    char head[9] = {0};
    memcpy(head, digest, 8);
    guint64 share = g_ascii_strtoull(head, NULL, 16) % 10;
    return share < 7 ? TEXT_TRAIN : share < 8 ? TEXT_TUNE : TEXT_HELDOUT;
}

/* What every canonical row has. */
static void make_canonical(json_t *row, const char *kind, const char *digest)
{
    g_autoptr(json_t) files = json_object();
    g_autofree char *commit = task_files_commit(files);
    g_autofree char *id = g_strdup_printf("%s-%.16s", kind, digest);
    g_autofree char *repo = g_strdup_printf("assay/%s", kind);
    g_autoptr(json_t) common =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:[s], s:[], s:O}", "dataset",
                  "text", "kind", kind, "instance_id", id, "repo", repo, "base_commit", commit,
                  "patch", "", "test_patch", "", "log_parser", "assay_plain", "eval_script",
                  "exit 1\n", "FAIL_TO_PASS", "answer", "PASS_TO_PASS", "files", files);
    json_object_update(row, common);
}

json_t *text_source_next(TextSource *source, GError **error)
{
    const char *kind = makers[source->maker].kind;
    for (guint tries = 0; tries < TRIES_MAX; tries++) {
        g_autoptr(json_t) row = makers[source->maker].make(&source->draw);
        const char *text = json_string_value(json_object_get(row, "problem_statement"));
        g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, text, -1);
        if (split_of(digest) != source->split || !g_hash_table_add(source->seen, g_strdup(digest)))
            continue;
        make_canonical(row, kind, digest);
        return g_steal_pointer(&row);
    }
    error_set(error, ASSAY_ERROR_LIMIT, "no new %s task in %u draws, after %u", kind, TRIES_MAX,
              g_hash_table_size(source->seen));
    return NULL;
}
