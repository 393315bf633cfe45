/*
 * The text of a sample while its tokens come: UTF-8 at every moment, stop strings never shown.
 *
 *     g_autoptr(StopStrings) stops = stop_strings_new(texts);
 *     SampleText text;
 *     sample_text_init(&text, tokenizer, stops);
 *     on = sample_text_add(&text, id, out);       FALSE: text.stop was met
 *     sample_text_end(&text, out);                no token is left: what was held back
 *     sample_text_clear(&text);
 */
#pragma once

#include "policy/tokenizer.h"

#define STOP_STRINGS_MAX      64u
#define STOP_STRING_BYTES_MAX 1024u /* of one */

/* Of a request: read-only once made, and shared by its samples and their threads. */
typedef struct StopStrings StopStrings;

/* INPUT or LIMIT, "stop: ...": an empty string, one that is no UTF-8 or too long, too many. */
StopStrings *stop_strings_new(const char *const *texts, gsize n, GError **error);
void stop_strings_free(StopStrings *stops);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(StopStrings, stop_strings_free)
guint stop_strings_count(const StopStrings *stops);

typedef struct SampleText {
    Detokenizer detokenizer;
    const StopStrings *stops;
    guint *matched;   /* of each stop string, how many bytes the text ends with */
    GString *held;    /* text that may be the head of a stop string */
    const char *stop; /* the one that was met, NULL before; of `stops` */
} SampleText;

/* `stops` may be NULL, and outlives the text. */
void sample_text_init(SampleText *text, const Tokenizer *tokenizer, const StopStrings *stops);
void sample_text_clear(SampleText *text);

/* Appends to `out` what can no longer be part of a stop string. FALSE: one was met; what follows it
 * is dropped, and nothing may be added any more. */
gboolean sample_text_add(SampleText *text, gint32 id, GString *out);
gboolean sample_text_end(SampleText *text, GString *out);
