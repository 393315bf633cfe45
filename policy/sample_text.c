/*
 * Stop strings in text that comes in pieces: Knuth, Morris and Pratt's matcher, one for each.
 *
 * Invariants:
 *   1. The stop string that ends first is met, of those that end together the longest: whatever
 *      pieces the text comes in, it is cut at the same byte.
 *   2. Held back is exactly the longest end of the text that begins a stop string.
 *   3. A byte costs each stop string a constant, however the text and the strings repeat.
 *
 * Not here: what a sample does when it is stopped (engine.h, FINISH_CALLER).
 */
#include "policy/sample_text.h"

#include "base/error.h"

#include <string.h>

typedef struct Stop {
    char *text;
    guint len;
    guint *falls; /* [len]: after how many bytes to go on when the next does not match */
} Stop;

struct StopStrings {
    guint n;
    Stop stops[];
};

/* falls[i]: the longest proper beginning of text[0..i] that also ends it. */
static guint *falls_new(const char *text, guint len)
{
    guint *falls = g_new0(guint, len);
    for (guint i = 1, k = 0; i < len; i++) {
        while (k > 0 && text[i] != text[k])
            k = falls[k - 1];
        k += text[i] == text[k] ? 1 : 0;
        falls[i] = k;
    }
    return falls;
}

StopStrings *stop_strings_new(const char *const *texts, gsize n, GError **error)
{
    if (n > STOP_STRINGS_MAX) {
        error_set(error, ASSAY_ERROR_LIMIT, "stop: %" G_GSIZE_FORMAT " strings, at most %u", n,
                  STOP_STRINGS_MAX);
        return NULL;
    }
    g_autoptr(StopStrings) stops = g_malloc0(sizeof *stops + n * sizeof *stops->stops);
    for (; stops->n < n; stops->n++) {
        const char *text = texts[stops->n];
        gsize len = strlen(text);
        if (len == 0 || len > STOP_STRING_BYTES_MAX || !g_utf8_validate(text, (gssize)len, NULL)) {
            error_set(error, ASSAY_ERROR_INPUT, "stop: a stop string has 1 to %u bytes of UTF-8",
                      STOP_STRING_BYTES_MAX);
            return NULL;
        }
        stops->stops[stops->n] =
            (Stop){.text = g_strdup(text), .len = (guint)len, .falls = falls_new(text, (guint)len)};
    }
    return g_steal_pointer(&stops);
}

void stop_strings_free(StopStrings *stops)
{
    if (stops == NULL)
        return;
    for (guint i = 0; i < stops->n; i++) {
        g_free(stops->stops[i].text);
        g_free(stops->stops[i].falls);
    }
    g_free(stops);
}

guint stop_strings_count(const StopStrings *stops)
{
    return stops != NULL ? stops->n : 0;
}

void sample_text_init(SampleText *text, const Tokenizer *tokenizer, const StopStrings *stops)
{
    *text = (SampleText){.detokenizer = {.tokenizer = tokenizer},
                         .stops = stops,
                         .matched = g_new0(guint, stop_strings_count(stops)),
                         .held = g_string_new(NULL)};
}

void sample_text_clear(SampleText *text)
{
    g_clear_pointer(&text->matched, g_free);
    if (text->held != NULL)
        g_string_free(text->held, TRUE);
    text->held = NULL;
}

/* One more byte for every matcher; the longest stop string that it completes, or NULL. */
static const Stop *step(SampleText *text, char byte)
{
    const Stop *met = NULL;
    for (guint i = 0; i < stop_strings_count(text->stops); i++) {
        const Stop *stop = &text->stops->stops[i];
        guint k = text->matched[i];
        while (k > 0 && stop->text[k] != byte)
            k = stop->falls[k - 1];
        k += stop->text[k] == byte ? 1 : 0;
        if (k == stop->len && (met == NULL || stop->len > met->len))
            met = stop;
        text->matched[i] = k; /* less than the length: a match ends the text */
    }
    return met;
}

/* Looks at what was appended to `held` from `from` on. */
static gboolean scan(SampleText *text, gsize from, GString *out)
{
    gsize keep = 0;
    for (gsize at = from; at < text->held->len; at++) {
        const Stop *stop = step(text, text->held->str[at]);
        if (stop == NULL)
            continue;
        g_string_append_len(out, text->held->str, (gssize)(at + 1 - stop->len));
        g_string_truncate(text->held, 0);
        text->stop = stop->text;
        return FALSE;
    }
    for (guint i = 0; i < stop_strings_count(text->stops); i++)
        keep = MAX(keep, text->matched[i]);
    g_string_append_len(out, text->held->str, (gssize)(text->held->len - keep));
    g_string_erase(text->held, 0, (gssize)(text->held->len - keep));
    return TRUE;
}

gboolean sample_text_add(SampleText *text, gint32 id, GString *out)
{
    gsize from = text->held->len;
    g_assert(text->stop == NULL);
    detokenizer_add(&text->detokenizer, id, text->held);
    return scan(text, from, out);
}

gboolean sample_text_end(SampleText *text, GString *out)
{
    gsize from = text->held->len;
    if (text->stop != NULL)
        return FALSE;
    detokenizer_end(&text->detokenizer, text->held);
    if (!scan(text, from, out))
        return FALSE;
    g_string_append_len(out, text->held->str, (gssize)text->held->len);
    g_string_truncate(text->held, 0);
    return TRUE;
}
