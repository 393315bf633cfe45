/*
 * Guessing the next tokens from the text so far (prompt lookup): agents repeat what they read.
 */
#pragma once

#include <glib.h>

#define ENGINE_DRAFT_MAX 16

/* Up to `max` tokens that followed the last earlier occurrence of the text's ending. Returns how
 * many; a wrong guess costs its row and nothing else. */
guint draft_find(const int *ids, gint64 n, int drafts[ENGINE_DRAFT_MAX], guint max);
