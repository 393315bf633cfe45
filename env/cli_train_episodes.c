/*
 * assay train episodes, explain: what a policy did, and what a loss makes of it.
 *
 * 1. Only a run's own files are read; explain computes with the weights of a checkpoint.
 * 2. Text of episodes is the model's: control characters are shown, never sent to a terminal.
 */
#include "env/cli.h"
#include "env/backend.h"

#include "env/train_config.h"
#include "env/train_record.h"

#include "base/error.h"
#include "policy/checkpoint.h"

#include <string.h>

#define EXPLAIN_ROWS 4096

/* ---- files of a run ---- */

/* The last of NNNNNN (or NNNNNN.jsonl) below DIR/`kind`, or the one that was asked for. */
static char *numbered_file(const char *dir, const char *kind, const char *suffix,
                           const char *wanted, GError **error)
{
    g_autofree char *all = g_build_filename(dir, kind, NULL), *best = NULL;
    g_autoptr(GDir) entries = g_dir_open(all, 0, error);
    const char *name;

    if (!entries)
        return NULL;
    while ((name = g_dir_read_name(entries))) {
        gsize digits = strspn(name, "0123456789");
        gboolean fits =
            digits > 0 && !strcmp(name + digits, suffix) &&
            (!wanted || g_ascii_strtoull(name, NULL, 10) == g_ascii_strtoull(wanted, NULL, 10));

        if (fits && (!best || strcmp(name, best) > 0)) {
            g_free(best);
            best = g_strdup(name);
        }
    }
    if (best)
        return g_build_filename(all, best, NULL);
    error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: there are no %s%s%s", dir, kind,
              wanted ? " of update " : "", wanted ? wanted : "");
    return NULL;
}

static Tokenizer *tokenizer_of(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "tokenizer", NULL);

    return tokenizer_load(path, error);
}

/* ---- episodes ---- */

typedef struct {
    guint group, rollout;
} Pick;

static double rank_reward(const Rollout *r)
{
    return r->unscorable ? -1e9 : r->reward;
}

/* Best, worst or longest of all; the first of equals. */
static Pick pick_of(const GPtrArray *groups, const char *how)
{
    Pick pick = {0, 0};
    double most = -G_MAXDOUBLE;

    for (guint g = 0; g < groups->len; g++) {
        const RolloutGroup *group = groups->pdata[g];

        for (guint i = 0; i < group->n; i++) {
            const Rollout *r = &group->rollouts[i];
            double rank = !strcmp(how, "longest") ? r->n
                          : !strcmp(how, "worst") ? -rank_reward(r)
                                                  : rank_reward(r);

            if (rank > most) {
                most = rank;
                pick = (Pick){g, i};
            }
        }
    }
    return pick;
}

static char *text_of(const Tokenizer *tokenizer, const int *ids, int n)
{
    g_autoptr(GString) raw = g_string_new(NULL);
    g_autofree char *valid = NULL;

    if (!tokenizer_decode(tokenizer, ids, (gsize)n, TOKENS_SPECIALS, raw, NULL))
        return g_strdup("(ids that are no tokens)");
    valid = g_utf8_make_valid(raw->str, (gssize)raw->len);
    for (char *at = valid; *at; at++)
        if (g_ascii_iscntrl(*at) && *at != '\n')
            *at = '?';
    return g_steal_pointer(&valid);
}

static void print_episode(Cli *cli, const Tokenizer *tokenizer, const RolloutGroup *group,
                          const char *task, const char *how, guint number)
{
    const Rollout *r = &group->rollouts[number];
    g_autofree char *prompt = text_of(tokenizer, group->prompt, group->prompt_n);
    g_autofree char *said = text_of(tokenizer, r->ids, r->n);

    if (cli->json) {
        g_autoptr(json_t) json =
            json_pack("{s:s, s:s, s:i, s:s, s:s, s:f, s:f, s:b}", "pick", how, "task", task,
                      "rollout", (int)number, "prompt", prompt, "text", said, "reward", r->reward,
                      "advantage", r->advantage, "unscorable", r->unscorable);

        cli_print_json(json);
        return;
    }
    printf("--- %s: %s, rollout %u, %s %g, advantage %.3f, %d tokens\n%s\n>>> %s\n\n", how, task,
           number, r->unscorable ? "unscorable," : "reward", r->reward, r->advantage, r->n, prompt,
           said);
}

int cli_train_episodes(Cli *cli)
{
    static const char *const all[] = {"best", "worst", "longest", NULL};
    GError *error = NULL;
    const char *dir = cli_arg(cli, 0), *wanted = cli_option(cli, "pick");
    g_autofree char *path =
        numbered_file(dir, "rollouts", ".jsonl", cli_option(cli, "update"), &error);
    g_autoptr(Tokenizer) tokenizer = path ? tokenizer_of(dir, &error) : NULL;
    g_auto(GStrv) tasks = NULL;
    g_autoptr(GPtrArray) groups = tokenizer ? record_read(path, &tasks, &error) : NULL;

    if (wanted && !g_strv_contains(all, wanted))
        return cli_usage(cli, "--pick is best, worst or longest");
    if (!groups)
        return cli_error(cli, error, "assay train ls");
    for (guint i = 0; all[i] && groups->len > 0; i++) {
        Pick pick = pick_of(groups, all[i]);

        if (!wanted || !strcmp(wanted, all[i]))
            print_episode(cli, tokenizer, groups->pdata[pick.group], tasks[pick.group], all[i],
                          pick.rollout);
    }
    return CLI_OK;
}

/* ---- explain ---- */

typedef struct {
    CliTable *table;
    const Tokenizer *tokenizer;
    const Rollout *wanted;
} Explaining;

static void explain_tokens(const Packer *packer, const LossToken *tokens, gpointer user)
{
    Explaining *e = user;

    for (guint i = 0; i < packer->n_targets; i++) {
        const PackTarget *target = &packer->targets[i];
        const LossToken *t = &tokens[i];
        g_autofree char *text = NULL, *at = NULL, *mu = NULL, *logp = NULL, *ratio = NULL;
        g_autofree char *weight = NULL, *advantage = NULL, *coef = NULL, *shown = NULL;

        if (target->rollout != e->wanted)
            continue;
        text = text_of(e->tokenizer, &target->id, 1);
        shown = g_strescape(text, NULL);
        at = g_strdup_printf("%d", target->at);
        mu = g_strdup_printf("%.4f", t->mu);
        logp = g_strdup_printf("%.4f", t->logp);
        ratio = g_strdup_printf("%.4f", t->ratio);
        weight = g_strdup_printf("%.4f", t->weight * t->correction);
        advantage = g_strdup_printf("%.4f", t->advantage);
        coef = g_strdup_printf("%.3e", t->coef);
        cli_table_add(e->table, at, shown, mu, logp, ratio, weight, advantage, coef, loss_reason(t),
                      NULL);
    }
}

static gboolean explain(Cli *cli, const TrainConfig *config, Trainer *trainer,
                        const Tokenizer *tokenizer, GPtrArray *groups, Pick pick, GError **error)
{
    static const char *const columns[] = {"at",     "token",     "sampled", "now", "ratio",
                                          "weight", "advantage", "coef",    "why", NULL};
    const NormOptions norm = train_config_norm(config);
    TrainerLoss loss = {.temperature = config->rollout_temperature};
    TrainerStats stats = {0};
    RolloutGroup *group = groups->pdata[pick.group];
    Explaining e = {cli_table_new(cli, columns), tokenizer, &group->rollouts[pick.rollout]};
    gboolean ok;

    loss.options = train_config_loss(config, &loss.loss);
    normalise((RolloutGroup **)groups->pdata, groups->len, &norm);
    ok = trainer_gradients(trainer, &group, 1, &loss, explain_tokens, &e, &stats, error);
    cli_table_end(e.table);
    return ok;
}

/* --group and --rollout; the best one where they are not given. */
static gboolean pick_wanted(Cli *cli, const GPtrArray *groups, Pick *pick, GError **error)
{
    const char *group = cli_option(cli, "group"), *rollout = cli_option(cli, "rollout");
    guint64 g, r;

    *pick = pick_of(groups, "best");
    if (!group && !rollout)
        return TRUE;
    if (groups->len == 0 ||
        !g_ascii_string_to_unsigned(group ? group : "0", 10, 0, groups->len - 1, &g, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "--group: there are %u groups", groups->len);
    if (!g_ascii_string_to_unsigned(rollout ? rollout : "0", 10, 0,
                                    ((RolloutGroup *)groups->pdata[g])->n - 1, &r, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "--rollout: there are %u rollouts",
                         ((RolloutGroup *)groups->pdata[g])->n);
    *pick = (Pick){(guint)g, (guint)r};
    return TRUE;
}

int cli_train_explain(Cli *cli)
{
    GError *error = NULL;
    const char *dir = cli_arg(cli, 0);
    g_autofree char *conf = g_build_filename(dir, "config.conf", NULL);
    g_autoptr(TrainConfig) config = train_config_load(conf, NULL, &error);
    g_autofree char *rollouts =
        config ? numbered_file(dir, "rollouts", ".jsonl", cli_option(cli, "update"), &error) : NULL;
    g_autofree char *weights =
        rollouts ? numbered_file(dir, "checkpoints", "", cli_option(cli, "weights"), &error) : NULL;
    g_autofree char *model_dir = weights ? g_build_filename(weights, "model", NULL) : NULL;
    g_autoptr(Tokenizer) tokenizer = weights ? tokenizer_of(dir, &error) : NULL;
    g_autoptr(Model) model =
        tokenizer ? model_load(backend_ops(), model_dir, train_config_weights(config),
                               (guint)config->model_chunk, &error)
                  : NULL;
    g_autoptr(Trainer) trainer =
        model ? trainer_new(model, EXPLAIN_ROWS, ACTS_KEEP_ALL, &error) : NULL;
    g_autoptr(GPtrArray) groups = trainer ? record_read(rollouts, NULL, &error) : NULL;
    Pick pick;

    if (!groups || !pick_wanted(cli, groups, &pick, &error) ||
        !explain(cli, config, trainer, tokenizer, groups, pick, &error))
        return cli_error(cli, error, "assay train ls");
    return CLI_OK;
}
