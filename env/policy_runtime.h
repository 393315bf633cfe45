/*
 * A model that can be sampled from, and sampling settings as options: what serve, sample and chat
 * share.
 */
#pragma once

#include "env/cli.h"
#include "policy/chat.h"
#include "policy/coded.h"
#include "policy/engine.h"
#include "policy/sample_text.h"

#define POLICY_CHOICES_MAX 4096u /* samples open at once */
#define POLICY_REPETITION  3000  /* tokens in a row that are all but certain end a sample */

typedef struct PolicyRuntime {
    Model *model;
    Tokenizer *tokenizer;
    Engine *engine;
    ChatStyle style;
    gint64 context; /* tokens of a sequence at most */
} PolicyRuntime;

/* The model and tokenizer in `dir`; options as they say. */
gboolean policy_runtime_open(Cli *cli, const char *dir, PolicyRuntime *runtime, GError **error);
void policy_runtime_close(PolicyRuntime *runtime);

/* --weights: bf16 where it is not given. */
gboolean policy_weights_wanted(Cli *cli, WeightFormat *format, GError **error);
/* An option that is a whole number in min .. max; absent leaves `number` as it is. */
gboolean policy_option_int(Cli *cli, const char *name, gint64 min, gint64 max, gint64 *number,
                           GError **error);

/* Options of a command that samples; rows for its table, and their values. The seed is drawn and
 * told where it was not given. */
/* clang-format off */
#define POLICY_RUNTIME_OPTIONS \
    {"tokenizer", "DIR", "the tokenizer, where it is elsewhere"}, \
    {"context", "N", "tokens of a sequence at most (else the model's)"}, \
    {"cache-mib", "N", "memory of sequences and prefixes (default 1024)"}, \
    {"weights", "T", "bf16 (default), f32 (as in training), int8, fp8 or int4"}, \
    {"chunk", "N", "tokens of a chunk, part of the numerics (else the model's)"}
#define POLICY_SAMPLING_OPTIONS \
    {"max-tokens", "N", "of each answer (else what the context has room for)"}, \
    {"temperature", "T", "0 takes the most likely token (default 1)"}, \
    {"top-k", "N", "only the N most likely tokens"}, \
    {"top-p", "P", "only the fewest tokens of this probability together"}, \
    {"min-p", "P", "only tokens of this share of the most likely one's probability"}, \
    {"seed", "S", "the same seed gives the same tokens"}
/* clang-format on */
gboolean policy_options_sampling(Cli *cli, EngineRequest *request, GError **error);

/* Prints text of a model as it comes, and empties it. On a terminal control characters are spelled
 * out: what a model says must not move the cursor, or worse. */
void policy_print(Cli *cli, GString *text);
