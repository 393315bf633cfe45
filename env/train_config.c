/*
 * The table of a training run's keys, and its three sources: defaults, the file, --set.
 *
 * 1. One row makes the key, the range check, the default and the help.
 * 2. An unknown group or key, and a value that does not parse or is out of range, are errors that
 *    name the place.
 * 3. Keys that contradict each other are refused here, before anything is opened.
 */
#include "env/train_config.h"

#include "env/train_dialect.h"

#include "base/error.h"
#include "base/json.h"
#include "policy/coded.h"

#include <math.h>
#include <string.h>

#define AT(field) G_STRUCT_OFFSET(TrainConfig, field)

/* clang-format off */
const TrainKey train_keys[] = {
    {"run.dir", TRAIN_TEXT, AT(run_dir), 0, 0, "", "where the run keeps its files"},
    {"run.seed", TRAIN_INT, AT(run_seed), 0, 1e15, "1", "of everything that is drawn"},
    {"run.updates", TRAIN_INT, AT(run_updates), 0, 1e9, "200", "batches of rollouts"},
    {"run.checkpoint_every", TRAIN_INT, AT(run_checkpoint_every), 1, 1e9, "50",
     "updates between checkpoints"},
    {"run.behind", TRAIN_INT, AT(run_behind), 0, 1, "0",
     "1: a batch is sampled before the update on the one before it"},
    {"run.threads", TRAIN_INT, AT(run_threads), 0, 1024, "0", "threads of the maths; 0: all"},
    {"run.ranks_wait_s", TRAIN_INT, AT(run_ranks_wait_s), 1, 86400, "600",
     "how long a rank under mpirun may be silent while others wait for it"},
    {"ranks.tp", TRAIN_INT, AT(ranks_tp), 1, 1024, "1",
     "ranks that share heads, vocabulary and experts"},
    {"ranks.ep", TRAIN_INT, AT(ranks_ep), 1, 1024, "1",
     "ranks with other experts, out of those with other rows"},
    {"ranks.sp", TRAIN_INT, AT(ranks_sp), 1, 1024, "1",
     "ranks that share the rows of a batch; what tp and sp leave of the ranks share minibatches"},
    {"model.path", TRAIN_TEXT, AT(model_path), 0, 0, "",
     "a model with its tokenizer to begin with; else a random one of the shape below"},
    {"model.weights", TRAIN_TEXT, AT(model_weights), 0, 0, "f32",
     "f32, or bf16: what products read, and may round to; weights that are stepped stay f32"},
    {"model.pattern", TRAIN_TEXT, AT(model_pattern), 0, 0, "llls",
     "layers: l lightning, s softmax attention"},
    {"model.hidden", TRAIN_INT, AT(model_hidden), 8, 16384, "128", "width"},
    {"model.heads", TRAIN_INT, AT(model_heads), 1, 256, "4", "query heads"},
    {"model.kv_heads", TRAIN_INT, AT(model_kv_heads), 1, 256, "4", "key and value heads"},
    {"model.rotary", TRAIN_INT, AT(model_rotary), 2, 256, "16", "rotated channels of a head"},
    {"model.experts", TRAIN_INT, AT(model_experts), 1, 256, "4", "experts of a layer"},
    {"model.topk", TRAIN_INT, AT(model_topk), 1, 8, "2", "experts of a token"},
    {"model.ffn", TRAIN_INT, AT(model_ffn), 8, 65536, "128", "width of an expert"},
    {"model.vocab", TRAIN_INT, AT(model_vocab), 260, 131072, "640", "vocabulary to train"},
    {"model.chunk", TRAIN_INT, AT(model_chunk), 1, 64, "16", "tokens of a chunk and page"},
    {"tasks.train", TRAIN_TEXT, AT(tasks_train), 0, 0, "", "rows of the tasks to learn from"},
    {"tasks.warmup", TRAIN_TEXT, AT(tasks_warmup), 0, 0, "",
     "rows that demonstrations are of; else tasks.train"},
    {"tasks.canaries", TRAIN_TEXT, AT(tasks_canaries), 0, 0, "",
     "rows of tasks that cannot be solved: sampled, never learnt from; a reward is an alarm"},
    {"tasks.canary_groups", TRAIN_INT, AT(tasks_canary_groups), 1, 1024, "1",
     "of them beside each batch"},
    {"tasks.shown", TRAIN_BOOL, AT(tasks_shown), 0, 0, "false",
     "tools: the prompt shows the files that tests call"},
    {"warmup.updates", TRAIN_INT, AT(warmup_updates), 0, 1e9, "1200",
     "updates on demonstrations before the first rollout"},
    {"warmup.tokens", TRAIN_INT, AT(warmup_tokens), 64, 1e7, "2048", "tokens of one such update"},
    {"warmup.lr", TRAIN_NUMBER, AT(warmup_lr), 0, 1, "0.002", "learning rate"},
    {"warmup.lr_end", TRAIN_NUMBER, AT(warmup_lr_end), 0, 1, "0.0002", "at the end, linearly"},
    {"warmup.lr_warmup", TRAIN_INT, AT(warmup_lr_warmup), 0, 1e6, "20", "updates of rising rate"},
    {"warmup.gold", TRAIN_NUMBER, AT(warmup_gold), 0, 1, "0.5",
     "share of demonstrated edits that are the fix; the rest are random"},
    {"warmup.skip_wrong", TRAIN_BOOL, AT(warmup_skip_wrong), 0, 0, "false",
     "wrong actions are read, not learnt"},
    {"warmup.text", TRAIN_NUMBER, AT(warmup_text), 0, 1, "0.33", "share of plain correct code"},
    {"warmup.read", TRAIN_NUMBER, AT(warmup_read), 0, 1e3, "0",
     "weight of learning a prompt's own tokens, beside 1 for its actions"},
    {"rollout.dialect", TRAIN_TEXT, AT(rollout_dialect), 0, 0, "compact",
     "how tasks are put to the policy; assay train dialects lists them"},
    {"rollout.groups", TRAIN_INT, AT(rollout_groups), 1, 65536, "32", "tasks of a batch"},
    {"rollout.samples", TRAIN_INT, AT(rollout_samples), 1, 4096, "16", "episodes of a task"},
    {"rollout.turns", TRAIN_INT, AT(rollout_turns), 1, 64, "2", "turns of an episode"},
    {"rollout.turns_learnt", TRAIN_INT, AT(rollout_turns_learnt), 0, 64, "0",
     "turns of the episodes that are learnt from; 0: all that there may be"},
    {"rollout.tokens", TRAIN_INT, AT(rollout_tokens), 1, 1e6, "32", "tokens of a turn"},
    {"rollout.windows", TRAIN_TEXT, AT(rollout_windows), 0, 0, "",
     "N,N,...: the limit of a turn grows in stages, the last is rollout.tokens"},
    {"rollout.window_span", TRAIN_INT, AT(rollout_window_span), 1, 1e6, "5",
     "batches over which a window is judged, and as many before them"},
    {"rollout.window_flat", TRAIN_NUMBER, AT(rollout_window_flat), 0, 10, "0.02",
     "perplexity that changes by less has converged: one condition for the next window"},
    {"rollout.window_near", TRAIN_NUMBER, AT(rollout_window_near), 0, 1, "0.9",
     "share of the window that the 99th percentile of lengths must reach: the other one"},
    {"rollout.temperature", TRAIN_NUMBER, AT(rollout_temperature), 0.01, 10, "1", "of sampling"},
    {"rollout.rate_low", TRAIN_NUMBER, AT(rollout_rate_low), 0, 1, "0",
     "tasks whose last pass rate is at most this are drawn less often"},
    {"rollout.rate_high", TRAIN_NUMBER, AT(rollout_rate_high), 0, 1, "1",
     "and those at least this"},
    {"rollout.refill", TRAIN_INT, AT(rollout_refill), 0, 100, "0",
     "more rounds of tasks while groups lack a spread (dynamic sampling)"},
    {"rollout.cut", TRAIN_TEXT, AT(rollout_cut), 0, 0, "keep",
     "episodes with a turn cut at its limit: keep, or mask them from the loss"},
    {"rollout.repetition", TRAIN_INT, AT(rollout_repetition), 0, 1e6, "0",
     "tokens above 0.99 in a row that end a turn; 0: never"},
    {"rollout.overlong_from", TRAIN_INT, AT(rollout_overlong_from), 0, 1e6, "0",
     "sampled tokens of an episode from which its reward shrinks; 0: never"},
    {"rollout.overlong_penalty", TRAIN_NUMBER, AT(rollout_overlong_penalty), 0, 100, "1",
     "what is taken at the limit of turns and tokens, linearly up to there"},
    {"rollout.context", TRAIN_INT, AT(rollout_context), 16, 1048576, "4096",
     "tools: tokens of an episode, its prompt included; at most optim.rows"},
    {"rollout.observation", TRAIN_INT, AT(rollout_observation), 200, 1e6, "2000",
     "tools: bytes of what a tool says, head and tail"},
    {"rollout.command_s", TRAIN_INT, AT(rollout_command_s), 1, 3600, "60",
     "tools: seconds of a command"},
    {"rollout.boxes", TRAIN_INT, AT(rollout_boxes), 1, 64, "4",
     "tools: episodes that can be in a box at once"},
    {"rollout.cache_mib", TRAIN_INT, AT(rollout_cache_mib), 1, 1048576, "512",
     "caches of sequences, MiB"},
    {"rollout.rows", TRAIN_INT, AT(rollout_rows), 1, 65536, "512", "rows of an engine step"},
    {"rollout.server", TRAIN_TEXT, AT(rollout_server), 0, 0, "",
     "http://HOST:PORT or unix:PATH: a server samples instead of this process"},
    {"rollout.server_api", TRAIN_TEXT, AT(rollout_server_api), 0, 0, "completions",
     "completions (OpenAI's, with return_token_ids) or generate (/inference/v1/generate)"},
    {"rollout.server_key", TRAIN_TEXT, AT(rollout_server_key), 0, 0, "",
     "a file with its bearer token"},
    {"rollout.server_model", TRAIN_TEXT, AT(rollout_server_model), 0, 0, "",
     "the model's name there; else none is said"},
    {"rollout.server_update", TRAIN_BOOL, AT(rollout_server_update), 0, 0, "false",
     "it is given the weights before each batch (/update_weights); else its own stay"},
    {"rollout.server_flight", TRAIN_INT, AT(rollout_server_flight), 1, 4096, "64",
     "requests at once"},
    {"rollout.server_attempts", TRAIN_INT, AT(rollout_server_attempts), 1, 100, "8",
     "for an answer; after that the episode is unscorable"},
    {"rollout.server_wait_s", TRAIN_INT, AT(rollout_server_wait_s), 1, 86400, "600",
     "for an answer"},
    {"loss.name", TRAIN_TEXT, AT(loss_name), 0, 0, "cispo", "assay train losses lists them"},
    {"loss.advantage", TRAIN_TEXT, AT(loss_advantage), 0, 0, "", "else the loss's own"},
    {"loss.normaliser", TRAIN_TEXT, AT(loss_normaliser), 0, 0, "", "else the loss's own"},
    {"loss.over_all", TRAIN_BOOL, AT(loss_over_all), 0, 0, "true",
     "groups without a spread count in the normaliser"},
    {"loss.population", TRAIN_BOOL, AT(loss_population), 0, 0, "false",
     "deviations divide by n instead of n - 1"},
    {"loss.anchor", TRAIN_TEXT, AT(loss_anchor), 0, 0, "rollout",
     "what ratios are taken against: rollout, or recomputed"},
    {"loss.is_cap", TRAIN_NUMBER, AT(loss_is_cap), 0, 1e9, "0", "largest ratio, absolute"},
    {"loss.is_floor", TRAIN_NUMBER, AT(loss_is_floor), 0, 1e9, "0", "smallest ratio, absolute"},
    {"loss.eps_low", TRAIN_NUMBER, AT(loss_eps_low), 0, 1e9, "0", "trust region below 1"},
    {"loss.eps_high", TRAIN_NUMBER, AT(loss_eps_high), 0, 1e9, "0", "and above"},
    {"loss.dual_cap", TRAIN_NUMBER, AT(loss_dual_cap), 0, 1e9, "0", "of dual_clip"},
    {"loss.tv_max", TRAIN_NUMBER, AT(loss_tv_max), 0, 1, "0", "of dppo"},
    {"loss.mismatch", TRAIN_TEXT, AT(loss_mismatch), 0, 0, "none",
     "none, tis, icepop, seq_tis or seq_mask"},
    {"loss.mismatch_cap", TRAIN_NUMBER, AT(loss_mismatch_cap), 0, 1e9, "0", "its upper bound"},
    {"loss.mismatch_floor", TRAIN_NUMBER, AT(loss_mismatch_floor), 0, 1e9, "0", "its lower bound"},
    {"loss.kl", TRAIN_TEXT, AT(loss_kl), 0, 0, "none", "none, k2 or k3: to the weights at first"},
    {"loss.kl_beta", TRAIN_NUMBER, AT(loss_kl_beta), 0, 1e3, "0.01", "its weight"},
    {"loss.entropy", TRAIN_NUMBER, AT(loss_entropy), 0, 10, "0", "weight of a bonus for entropy"},
    {"loss.balance", TRAIN_NUMBER, AT(loss_balance), 0, 10, "0",
     "weight of an auxiliary loss for even loads of experts, warm-up included"},
    {"optim.lr", TRAIN_NUMBER, AT(optim_lr), 0, 1, "0.0002", "learning rate"},
    {"optim.lr_end", TRAIN_NUMBER, AT(optim_lr_end), 0, 1, "0.00002", "at the end, linearly"},
    {"optim.lr_warmup", TRAIN_INT, AT(optim_lr_warmup), 0, 1e6, "20", "steps of rising rate"},
    {"optim.beta1", TRAIN_NUMBER, AT(optim_beta1), 0, 1, "0.9", ""},
    {"optim.beta2", TRAIN_NUMBER, AT(optim_beta2), 0, 1, "0.95", ""},
    {"optim.eps", TRAIN_NUMBER, AT(optim_eps), 0, 1, "1e-15", "beside the root"},
    {"optim.weight_decay", TRAIN_NUMBER, AT(optim_weight_decay), 0, 10, "0", ""},
    {"optim.clip_norm", TRAIN_NUMBER, AT(optim_clip_norm), 0, 1e9, "1",
     "longest gradient; 0: any"},
    {"optim.minibatches", TRAIN_INT, AT(optim_minibatches), 1, 65536, "2",
     "steps of one pass over a batch"},
    {"optim.epochs", TRAIN_INT, AT(optim_epochs), 1, 1024, "1", "passes over a batch"},
    {"optim.rows", TRAIN_INT, AT(optim_rows), 16, 1048576, "4096",
     "rows worked on at once: memory, not results"},
    {"optim.recompute", TRAIN_BOOL, AT(optim_recompute), 0, 0, "false",
     "activations are made a second time instead of kept: memory, not results"},
    {"optim.shares", TRAIN_INT, AT(optim_shares), 0, 65536, "0",
     "parts of a minibatch whose gradients are added in order, a multiple of the ranks; 0: one each"},
    {"optim.routing_replay", TRAIN_BOOL, AT(optim_routing_replay), 0, 0, "false",
     "each token is trained through the experts that sampling chose for it"},
    {"eval.sets", TRAIN_TEXT, AT(eval_sets), 0, 0, "", "NAME=FILE, ...: held-out tasks"},
    {"eval.every", TRAIN_INT, AT(eval_every), 1, 1e9, "50", "updates between evaluations"},
    {"eval.samples", TRAIN_INT, AT(eval_samples), 1, 4096, "4", "episodes of a task"},
    {"eval.tasks", TRAIN_INT, AT(eval_tasks), 1, 1e6, "192", "first tasks of each set"},
    {NULL, TRAIN_TEXT, 0, 0, 0, NULL, NULL},
};
/* clang-format on */

static const TrainKey *key_find(const char *name)
{
    for (const TrainKey *key = train_keys; key->name; key++)
        if (!strcmp(key->name, name))
            return key;
    return NULL;
}

static gboolean key_unknown(const char *name, const char *origin, GError **error)
{
    const char *names[G_N_ELEMENTS(train_keys)] = {NULL}, *near;

    for (guint i = 0; train_keys[i].name; i++)
        names[i] = train_keys[i].name;
    near = word_nearest(name, names);
    return error_set(error, ASSAY_ERROR_INPUT, "%s: unknown key %s%s%s%s", origin, name,
                     near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

static gboolean bad_value(const TrainKey *key, const char *text, const char *origin, GError **error)
{
    if (key->type == TRAIN_BOOL)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: %s is \"%s\"; it must be true or false",
                         origin, key->name, text);
    return error_set(error, ASSAY_ERROR_INPUT, "%s: %s is \"%s\"; it must be a %s from %g to %g",
                     origin, key->name, text, key->type == TRAIN_INT ? "whole number" : "number",
                     key->min, key->max);
}

static gboolean key_set(TrainConfig *config, const TrainKey *key, const char *text,
                        const char *origin, GError **error)
{
    void *at = G_STRUCT_MEMBER_P(config, key->offset);
    gint64 whole = 0;
    double number = 0;
    char *end = NULL;

    if (key->type == TRAIN_TEXT) {
        g_free(*(char **)at);
        *(char **)at = g_strdup(text);
    } else if (key->type == TRAIN_BOOL) {
        *(gboolean *)at = !strcmp(text, "true");
        if (!*(gboolean *)at && strcmp(text, "false") != 0)
            return bad_value(key, text, origin, error);
    } else if (key->type == TRAIN_INT) {
        if (!g_ascii_string_to_signed(text, 10, (gint64)key->min, (gint64)key->max, &whole, NULL))
            return bad_value(key, text, origin, error);
        *(gint64 *)at = whole;
    } else {
        number = g_ascii_strtod(text, &end);
        if (end == text || *end || !(number >= key->min && number <= key->max))
            return bad_value(key, text, origin, error);
        *(double *)at = number;
    }
    return TRUE;
}

static gboolean set_by_name(TrainConfig *config, const char *name, const char *text,
                            const char *origin, GError **error)
{
    const TrainKey *key = key_find(name);

    return key ? key_set(config, key, text, origin, error) : key_unknown(name, origin, error);
}

static gboolean read_file(TrainConfig *config, const char *path, GError **error)
{
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autofree char *contents = NULL;
    g_auto(GStrv) groups = NULL;
    gsize len;

    if (!g_file_get_contents(path, &contents, &len, error) ||
        !g_key_file_load_from_data(file, contents, len, G_KEY_FILE_NONE, error)) {
        g_prefix_error(error, "%s: ", path);
        return FALSE;
    }
    groups = g_key_file_get_groups(file, NULL);
    for (guint g = 0; groups[g]; g++) {
        g_auto(GStrv) keys = g_key_file_get_keys(file, groups[g], NULL, NULL);

        for (guint k = 0; keys && keys[k]; k++) {
            g_autofree char *name = g_strdup_printf("%s.%s", groups[g], keys[k]);
            g_autofree char *value = g_key_file_get_string(file, groups[g], keys[k], error);

            if (!value || !set_by_name(config, name, value, path, error))
                return FALSE;
        }
    }
    return TRUE;
}

static gboolean read_settings(TrainConfig *config, const char *const *settings, GError **error)
{
    for (guint i = 0; settings && settings[i]; i++) {
        const char *equals = strchr(settings[i], '=');
        g_autofree char *name = equals ? g_strndup(settings[i], equals - settings[i]) : NULL;

        if (!equals)
            return error_set(error, ASSAY_ERROR_INPUT, "--set %s: not of the form group.key=value",
                             settings[i]);
        if (!set_by_name(config, name, equals + 1, "--set", error))
            return FALSE;
    }
    return TRUE;
}

/* ---- words ---- */

typedef const char *(*NameFunc)(int kind);

/* The number of a word in a list of `count` names; -1: none. */
static int word_index(const char *word, NameFunc name, int count)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(name(i), word))
            return i;
    return -1;
}

static const char *name_advantage(int kind)
{
    return advantage_name((AdvantageKind)kind);
}

static const char *name_norm(int kind)
{
    return norm_name((NormKind)kind);
}

static const char *name_mismatch(int kind)
{
    return mismatch_name((MismatchKind)kind);
}

static const char *name_kl(int kind)
{
    return kl_name((KlKind)kind);
}

static const char *name_weights(int kind)
{
    return weight_format_name(kind ? WEIGHT_BF16 : WEIGHT_REAL);
}

static const char *name_anchor(int kind)
{
    return kind ? "recomputed" : "rollout";
}

static const char *name_cut(int kind)
{
    return kind ? "mask" : "keep";
}

static const char *name_dialect(int kind)
{
    return train_dialects[kind]->name;
}

static int dialects_count(void)
{
    int n = 0;

    while (train_dialects[n])
        n++;
    return n;
}

static const char *name_api(int kind)
{
    return remote_api_name((RemoteApi)kind);
}

static const char *name_loss(int kind)
{
    return losses[kind]->name;
}

static gboolean check_word(const char *key, const char *word, gboolean may_be_empty, NameFunc name,
                           int count, GError **error)
{
    g_autoptr(GString) all = g_string_new(NULL);

    if ((may_be_empty && !*word) || word_index(word, name, count) >= 0)
        return TRUE;
    for (int i = 0; i < count; i++)
        g_string_append_printf(all, "%s%s", i ? ", " : "", name(i));
    return error_set(error, ASSAY_ERROR_INPUT, "%s is \"%s\"; it must be one of %s", key, word,
                     all->str);
}

static int losses_count(void)
{
    int n = 0;

    while (losses[n])
        n++;
    return n;
}

guint train_config_windows(const TrainConfig *c, gint64 *windows)
{
    g_auto(GStrv) words = g_strsplit(c->rollout_windows, ",", -1);
    guint n = 0;

    for (guint i = 0; words[i] && n < TRAIN_WINDOWS_MAX; i++)
        windows[n++] = g_ascii_strtoll(words[i], NULL, 10);
    return n;
}

static gboolean check_turns(const TrainConfig *c, GError **error)
{
    return c->rollout_turns_learnt <= c->rollout_turns ||
           error_set(error, ASSAY_ERROR_INPUT,
                     "rollout.turns_learnt is %" G_GINT64_FORMAT
                     "; it must be at most rollout.turns, %" G_GINT64_FORMAT,
                     c->rollout_turns_learnt, c->rollout_turns);
}

static gboolean check_windows(const TrainConfig *c, GError **error)
{
    g_auto(GStrv) words = g_strsplit(c->rollout_windows, ",", -1);
    gint64 last = 0, tokens = 0;

    for (guint i = 0; words[i]; i++) {
        if (i >= TRAIN_WINDOWS_MAX || last >= c->rollout_tokens ||
            !g_ascii_string_to_signed(g_strstrip(words[i]), 10, last + 1, c->rollout_tokens,
                                      &tokens, NULL))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "rollout.windows is \"%s\"; it must be at most %u numbers that rise "
                             "to rollout.tokens",
                             c->rollout_windows, TRAIN_WINDOWS_MAX);
        last = tokens;
    }
    return last == 0 || last == c->rollout_tokens ||
           error_set(error, ASSAY_ERROR_INPUT,
                     "rollout.windows ends with %" G_GINT64_FORMAT
                     ", rollout.tokens is %" G_GINT64_FORMAT,
                     last, c->rollout_tokens);
}

/* What a server's samples cannot have, or must. */
static gboolean check_server(const TrainConfig *c, GError **error)
{
    if (!*c->rollout_server)
        return TRUE;
    if (strcmp(c->loss_anchor, "recomputed") != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "rollout.server: loss.anchor must be recomputed, a server's "
                         "log-probabilities are of other numerics than training's");
    if (c->rollout_repetition > 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "rollout.server: rollout.repetition is the engine's, it must be 0");
    if (c->optim_routing_replay)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "rollout.server: optim.routing_replay is of the engine's own choices");
    return TRUE;
}

/* Where sums over heads or sequences are cut, training has other bits than sampling. */
static gboolean check_ranks(const TrainConfig *c, GError **error)
{
    if (c->ranks_tp * c->ranks_sp > 1 && strcmp(c->loss_anchor, "recomputed") != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "ranks.tp is %" G_GINT64_FORMAT ", ranks.sp %" G_GINT64_FORMAT
                         ": loss.anchor must be recomputed, sampling's log-probabilities are of "
                         "other sums than training's",
                         c->ranks_tp, c->ranks_sp);
    if (c->ranks_ep * c->ranks_sp > 1 && c->loss_balance > 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "ranks.ep is %" G_GINT64_FORMAT ", ranks.sp %" G_GINT64_FORMAT
                         ": loss.balance looks at one rank's rows, it must be 0",
                         c->ranks_ep, c->ranks_sp);
    return TRUE;
}

static gboolean check(const TrainConfig *c, GError **error)
{
    gboolean softmax = strspn(c->model_pattern, "ls") == strlen(c->model_pattern);

    if (!check_word("loss.name", c->loss_name, FALSE, name_loss, losses_count(), error) ||
        !check_word("loss.advantage", c->loss_advantage, TRUE, name_advantage, ADVANTAGE_KINDS,
                    error) ||
        !check_word("loss.normaliser", c->loss_normaliser, TRUE, name_norm, NORM_KINDS, error) ||
        !check_word("loss.mismatch", c->loss_mismatch, FALSE, name_mismatch, MISMATCH_KINDS,
                    error) ||
        !check_word("loss.kl", c->loss_kl, FALSE, name_kl, KL_KINDS, error) ||
        !check_word("loss.anchor", c->loss_anchor, FALSE, name_anchor, 2, error) ||
        !check_word("model.weights", c->model_weights, FALSE, name_weights, 2, error) ||
        !check_word("rollout.cut", c->rollout_cut, FALSE, name_cut, 2, error) ||
        !check_word("rollout.dialect", c->rollout_dialect, FALSE, name_dialect, dialects_count(),
                    error) ||
        !check_word("rollout.server_api", c->rollout_server_api, FALSE, name_api, REMOTE_APIS,
                    error) ||
        !check_server(c, error) || !check_ranks(c, error) || !check_turns(c, error) ||
        !check_windows(c, error))
        return FALSE;
    if (!*c->model_pattern || !softmax)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "model.pattern is \"%s\"; it must be made of l and s", c->model_pattern);
    if (c->model_topk > c->model_experts)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "model.topk is %" G_GINT64_FORMAT ", more than the %" G_GINT64_FORMAT
                         " experts",
                         c->model_topk, c->model_experts);
    if (train_dialect(c->rollout_dialect)->answer_rows == 0 && c->rollout_context > c->optim_rows)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "rollout.context is %" G_GINT64_FORMAT ", more than the %" G_GINT64_FORMAT
                         " of optim.rows",
                         c->rollout_context, c->optim_rows);
    if (c->optim_minibatches > c->rollout_groups)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "optim.minibatches is %" G_GINT64_FORMAT
                         ", more than the %" G_GINT64_FORMAT " groups of a batch",
                         c->optim_minibatches, c->rollout_groups);
    return TRUE;
}

TrainConfig *train_config_load(const char *path, const char *const *settings, GError **error)
{
    g_autoptr(TrainConfig) config = g_new0(TrainConfig, 1);

    for (const TrainKey *key = train_keys; key->name; key++)
        if (!key_set(config, key, key->fallback, "default", error))
            return NULL;
    if ((path && !read_file(config, path, error)) || !read_settings(config, settings, error) ||
        !check(config, error))
        return NULL;
    return g_steal_pointer(&config);
}

void train_config_free(TrainConfig *config)
{
    if (!config)
        return;
    for (const TrainKey *key = train_keys; key->name; key++)
        if (key->type == TRAIN_TEXT)
            g_free(*(char **)G_STRUCT_MEMBER_P(config, key->offset));
    g_free(config);
}

char *train_key_value(GKeyFile *file, const TrainKey *key)
{
    const char *dot = strchr(key->name, '.');
    g_autofree char *group = g_strndup(key->name, dot - key->name);

    return g_key_file_get_string(file, group, dot + 1, NULL);
}

static char *value_text(const TrainConfig *config, const TrainKey *key)
{
    const void *at = (const char *)config + key->offset;
    char number[G_ASCII_DTOSTR_BUF_SIZE];

    if (key->type == TRAIN_TEXT)
        return g_strdup(*(char *const *)at);
    if (key->type == TRAIN_BOOL)
        return g_strdup(*(const gboolean *)at ? "true" : "false");
    if (key->type == TRAIN_INT)
        return g_strdup_printf("%" G_GINT64_FORMAT, *(const gint64 *)at);
    return g_strdup(g_ascii_dtostr(number, sizeof number, *(const double *)at));
}

char *train_config_text(const TrainConfig *config)
{
    g_autoptr(GKeyFile) file = g_key_file_new();

    for (const TrainKey *key = train_keys; key->name; key++) {
        const char *dot = strchr(key->name, '.');
        g_autofree char *group = g_strndup(key->name, dot - key->name);
        g_autofree char *value = value_text(config, key);

        g_key_file_set_string(file, group, dot + 1, value);
    }
    return g_key_file_to_data(file, NULL, NULL);
}

/* ---- what the trainer is told ---- */

LossOptions train_config_loss(const TrainConfig *c, const Loss **ret_loss)
{
    LossOptions options = {
        .is_floor = c->loss_is_floor,
        .is_cap = c->loss_is_cap,
        .eps_low = c->loss_eps_low,
        .eps_high = c->loss_eps_high,
        .dual_cap = c->loss_dual_cap,
        .tv_max = c->loss_tv_max,
        .mismatch = (MismatchKind)word_index(c->loss_mismatch, name_mismatch, MISMATCH_KINDS),
        .mismatch_cap = c->loss_mismatch_cap,
        .mismatch_floor = c->loss_mismatch_floor,
        .kl = (KlKind)word_index(c->loss_kl, name_kl, KL_KINDS),
        .kl_beta = c->loss_kl_beta,
        .entropy = c->loss_entropy,
    };

    *ret_loss = loss_find(c->loss_name);
    return loss_options(*ret_loss, &options);
}

AdvantageOptions train_config_advantage(const TrainConfig *c)
{
    int kind = word_index(c->loss_advantage, name_advantage, ADVANTAGE_KINDS);

    return (AdvantageOptions){.kind = kind < 0 ? loss_find(c->loss_name)->advantage
                                               : (AdvantageKind)kind,
                              .population = c->loss_population};
}

gint64 train_config_turns(const TrainConfig *c)
{
    return c->rollout_turns_learnt > 0 ? c->rollout_turns_learnt : c->rollout_turns;
}

NormOptions train_config_norm(const TrainConfig *c)
{
    int kind = word_index(c->loss_normaliser, name_norm, NORM_KINDS);

    return (NormOptions){.kind = kind < 0 ? loss_find(c->loss_name)->norm : (NormKind)kind,
                         .over_all = c->loss_over_all,
                         .length = (int)(train_config_turns(c) * c->rollout_tokens)};
}

RemoteApi train_config_api(const TrainConfig *c)
{
    return (RemoteApi)word_index(c->rollout_server_api, name_api, REMOTE_APIS);
}

WeightFormat train_config_weights(const TrainConfig *c)
{
    return word_index(c->model_weights, name_weights, 2) ? WEIGHT_BF16 : WEIGHT_REAL;
}

Layout train_config_layout(const TrainConfig *c)
{
    return (Layout){
        .tp = (guint32)c->ranks_tp, .ep = (guint32)c->ranks_ep, .sp = (guint32)c->ranks_sp};
}
