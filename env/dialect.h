/*
 * The compact dialect: a repair task and its episode in few tokens, for models of about a million
 * parameters, which could not afford M1's chat template and JSON tool calls.
 *
 *     prompt   <bos>  1 int clamp ( int x , int lo , int hi ) {
 *                     2 if ( x > lo ) return lo ;             ... <eos> <bos>
 *     action          2 if ( x < lo ) return lo ;                 <eos>
 *     answer   <bos>  fail                                        <eos> <bos>
 *
 * Shown are the lines of the files under repair that are not blank, numbered through, as lexical
 * tokens with one space between. An action is a line number and what the line is to read; several
 * lines of it are several edits. Tokens that stay keep their layout, and indentation is the line's
 * own. An action becomes calls of the tool `edit`, so the episode is that of any other agent.
 */
#pragma once

#include "base/json.h"
#include "policy/tokenizer.h"

#define DIALECT_EDITS_MAX  8u
#define DIALECT_LINES_MAX  4096u
#define DIALECT_TOKENS_MAX 4096u /* of one line */

/* A piece of a line: an identifier, a number, a string or an operator. */
typedef struct Lexeme {
    guint32 at, len; /* in the line */
} Lexeme;

typedef struct SourceLine {
    char *path;
    guint number; /* in its file, from 0 */
    char *text;
    GArray *lexemes;
} SourceLine;

/* The lines that a prompt shows; number n of the prompt is lines[n - 1]. */
typedef struct Source {
    GPtrArray *lines; /* SourceLine */
    json_t *files;    /* path -> text, all of them */
} Source;

/* Shows `paths` (NULL-terminated) of `files`, to which it keeps a reference. */
Source *source_new(json_t *files, const char *const *paths, GError **error);
void source_free(Source *source);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Source, source_free)

/* The prompt's text, and the turns of an episode as ids. */
char *dialect_text(const Source *source);
gboolean dialect_prompt(const Tokenizer *tokenizer, const Source *source, GArray *ids,
                        GError **error);
/* A turn of the environment, whatever it says, and the opening of the model's. */
gboolean dialect_opening(const Tokenizer *tokenizer, const char *text, GArray *ids, GError **error);
/* What the environment says after an action: <eos> where the model did not end its turn, then its
 * words, then the opening of the next turn. */
gboolean dialect_answer(const Tokenizer *tokenizer, const char *words, gboolean ended, GArray *ids,
                        GError **error);

/* What the environment says to an action after which tests fail, and to what is no action. */
#define DIALECT_FAIL "fail"
#define DIALECT_BAD  "bad"

/* Reads an action; NULL (no error) when it is none: it names no line, changes nothing, or is too
 * many edits. The edits are arguments of the tool `edit`: str_replace, with as many lines around as
 * make the place the only one. `ret_changes` (may be NULL): the changed files as they are then,
 * path to text. */
json_t *dialect_action(const Source *source, const char *text, json_t **ret_changes);

/* The edits that make the lines of `source` those of `fixed`, as an action; NULL where lines were
 * added or taken away, which the dialect cannot say. */
char *dialect_fix(const Source *source, const Source *fixed);

/* An action that applies and changes one token for another of its kind: by the state of `rand`. */
char *dialect_random(const Source *source, GRand *rand);
