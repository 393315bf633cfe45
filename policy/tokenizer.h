/*
 * Byte-level BPE: text to token ids and back.
 *
 *     g_autoptr(Tokenizer) tokenizer = tokenizer_load("models/m1-tiny", &error);
 *     g_autoptr(GArray) ids = tokens_new();
 *     tokenizer_encode(tokenizer, text, len, TOKENS_PLAIN, ids, &error);
 *
 * An id is a gint32. A text is any bytes; decoding the ids of a text gives the same bytes. Special
 * tokens (turn marks, end of document) come out of text only where the caller says so: what a user
 * wrote can never become one. A Tokenizer is read-only once loaded and may be shared by threads.
 */
#pragma once

#include <glib.h>

#define TOKENIZER_VOCAB_MAX      (1u << 20) /* one past the highest id */
#define TOKENIZER_TOKEN_BYTES    4096u      /* of one token */
#define TOKENIZER_TEXT_BYTES_MAX (64u << 20)
#define TOKENIZER_SPECIALS_MAX   1024u

/* M1's special tokens; tokenizer_special gives their ids. */
#define TOKEN_BOS "<beginning_of_sentence>" /* a turn begins */
#define TOKEN_EOS "<end_of_sentence>"       /* a turn ends: the stop token */
#define TOKEN_EOD "<end_of_document>"
#define TOKEN_BOD "<begin_of_document>"

typedef struct Tokenizer Tokenizer;

typedef enum TokensFlags {
    TOKENS_PLAIN = 0,    /* encode: all text is ordinary; decode: special tokens leave nothing */
    TOKENS_SPECIALS = 1, /* the text of a special token stands for it: for trusted text only */
} TokensFlags;

/*
 * Reads DIR/tokenizer.json (Hugging Face's form) or, where that is absent or empty, DIR/merges.txt:
 * then byte b has id b, merge number i makes id 256 + i, and special tokens follow, those that
 * DIR/tokenizer_config.json lists under added_tokens_decoder, else M1's (200000 to 200031 when
 * there are 199,744 merges; the known names have their ids, the others are called <special_ID>).
 * Anything in the files that would tokenise otherwise than this one does is refused by its name.
 */
Tokenizer *tokenizer_load(const char *dir, GError **error);

/* Writes DIR/tokenizer.json, and DIR/merges.txt when that alone gives the same ids. */
gboolean tokenizer_save(const Tokenizer *tokenizer, const char *dir, GError **error);
void tokenizer_free(Tokenizer *tokenizer);

/* One past the highest id; there may be holes below. */
gint32 tokenizer_size(const Tokenizer *tokenizer);

/* The bytes of a token (not terminated), NULL for an id that is none. */
const char *tokenizer_bytes(const Tokenizer *tokenizer, gint32 id, gsize *ret_len);

/* The id of the token with exactly these bytes, special or not; -1: there is none. */
gint32 tokenizer_find(const Tokenizer *tokenizer, const char *bytes, gsize len);

/* The id of a special token by its text; -1: there is none. */
gint32 tokenizer_special(const Tokenizer *tokenizer, const char *text);
gboolean tokenizer_is_special(const Tokenizer *tokenizer, gint32 id);

/* An empty list of ids. */
GArray *tokens_new(void);

/*
 * Appends the ids of `text` to `ids` (tokens_new). O(n log n), also for one piece of megabytes;
 * 28 bytes of memory for each byte of the longest piece. On an error nothing is appended: LIMIT for
 * more than TOKENIZER_TEXT_BYTES_MAX.
 */
gboolean tokenizer_encode(const Tokenizer *tokenizer, const char *text, gsize len,
                          TokensFlags flags, GArray *ids, GError **error);

/* Appends the bytes of the tokens to `out`; an id that is no token is an INPUT error that names its
 * place, and nothing is appended. */
gboolean tokenizer_decode(const Tokenizer *tokenizer, const gint32 *ids, gsize n, TokensFlags flags,
                          GString *out, GError **error);

/* Tokens one at a time to text that is UTF-8 at every moment: the head of a character waits for
 * the rest, what can never be a character becomes U+FFFD. Zero it, set the tokenizer. */
typedef struct Detokenizer {
    const Tokenizer *tokenizer;
    TokensFlags flags;
    guint n_held;
    char held[4];
} Detokenizer;

/* Appends to `out` the text that `id` completes, often none. FALSE: the id is no token. */
gboolean detokenizer_add(Detokenizer *detokenizer, gint32 id, GString *out);
/* Appends what is still held, as U+FFFD. */
void detokenizer_end(Detokenizer *detokenizer, GString *out);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Tokenizer, tokenizer_free)
