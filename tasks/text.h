/*
 * Text tasks: asked and answered in words, made from rules and a seed.
 *
 *     g_autoptr(TextSource) source = text_source_new("math", 1, 0, error);
 *     g_autoptr(json_t) row = text_source_next(source, error);     a canonical row (tasks/task.h)
 *
 * A row has "kind" and what its checker needs (text_math.h, text_logic.h). It has no files and no
 * tests: a grader that takes it for a repository resolves nothing.
 */
#pragma once

#include "base/json.h"

/* Shares of the problems, by a hash of their text: a problem is of one split. */
typedef enum TextSplit { TEXT_TRAIN = 0, TEXT_TUNE = 1, TEXT_HELDOUT = 2 } TextSplit;

typedef struct TextSource TextSource;

gboolean text_has_kind(const char *kind);
/* NOT_FOUND: there is no such kind. */
TextSource *text_source_new(const char *kind, guint64 seed, TextSplit split, GError **error);
void text_source_free(TextSource *source);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TextSource, text_source_free)

/* The next row, one that was not there before. LIMIT: (almost) all have been given out. */
json_t *text_source_next(TextSource *source, GError **error);

/* ---- for those who make them ---- */

typedef struct TextDraw {
    guint64 state;
} TextDraw;

/* A number below `below`; one from `from` to `to`. */
guint text_below(TextDraw *draw, guint below);
int text_between(TextDraw *draw, int from, int to);
