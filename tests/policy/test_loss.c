/*
 * Losses, advantages and normalisers on numbers made by hand: the traps that trainers fell into.
 */
#include "policy/loss.h"

#include <glib.h>
#include <math.h>

#define NEAR(value, want) g_assert_cmpfloat_with_epsilon(value, want, 1e-12)

static LossToken token(double ratio, double advantage)
{
    return (LossToken){
        .logp = log(ratio) - 2, .anchor = -2, .mu = -2, .advantage = advantage, .scale = 0.25};
}

static double coef_of(const char *name, const LossOptions *given, double ratio, double advantage)
{
    g_autoptr(GError) error = NULL;
    const Loss *loss = loss_find(name);
    LossOptions options = loss_options(loss, given);
    LossToken t = token(ratio, advantage);
    LossStats stats = {0};

    g_assert_true(loss_coefs(loss, &options, &t, 1, &stats, &error));
    g_assert_no_error(error);
    return t.coef / t.scale;
}

static const LossOptions plain;

static void test_all_agree_on_policy(void)
{
    guint n = 0;

    for (; losses[n]; n++) {
        g_assert_cmpfloat(coef_of(losses[n]->name, &plain, 1, 0.7), ==, 0.7);
        g_assert_cmpfloat(coef_of(losses[n]->name, &plain, 1, -1.3), ==, -1.3);
        g_assert_true(loss_find(losses[n]->name) == losses[n]);
    }
    g_assert_cmpuint(n, >=, 15);
    g_assert_null(loss_find("vespo"));
}

static void test_bounds(void)
{
    static const struct {
        const char *loss;
        double ratio, advantage, want;
    } rows[] = {
        {"cispo", 10, 1, 5},
        {"cispo", 10, -1, -5},
        {"cispo", 0.01, 1, 0.01},
        {"grpo", 10, 1, 0},
        {"grpo", 10, -1, -10},
        {"grpo", 0.5, -1, 0},
        {"grpo", 0.5, 1, 0.5},
        {"grpo", 1.25, 1, 0},
        {"dapo", 1.25, 1, 1.25},
        {"dapo", 1.29, 1, 0},
        {"dual_clip", 10, -1, 0},
        {"dual_clip", 2.9, -1, -2.9},
        {"dual_clip", 10, 1, 0},
        {"reinforce", 10, 1, 1},
        {"is", 10, -1, -10},
        {"topr", 10, 1, 1},
        {"topr", 0.3, -1, -0.3},
        {"topr", 10, -1, -1},
        {"cispo_mask", 1.27, 1, 1.27},
        {"cispo_mask", 1.29, 1, 0},
        {"cispo_mask", 9, -1, -5},
        {"cispo_mask", 0.7, -1, 0},
        {"dppo", 1.5, 1, 1.5},
        {"dppo", 5, 1, 0},
        {"dppo", 5, -1, -5},
        {"sft", 3, 1, 1},
        {"rloo", 3, 1, 1},
        {"dr_grpo", 10, 1, 0},
        {"reinforce++", 10, 1, 0},
        {"ppo", 1.21, 1, 0},
        {"gspo", 1.0005, 1, 0},
        {"gspo", 1.0003, 1, 1.0003},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        NEAR(coef_of(rows[i].loss, &plain, rows[i].ratio, rows[i].advantage), rows[i].want);
}

static void test_cap_is_absolute(void)
{
    LossOptions endless = {.is_cap = 1e9}, floor = {.is_cap = 2, .is_floor = 0.5};
    LossOptions ppo = {.is_cap = 1e9, .eps_low = 0.2, .eps_high = 0.2};

    NEAR(coef_of("cispo", &floor, 0.1, 1), 0.5);
    NEAR(coef_of("cispo", &floor, 3, 1), 2);
    for (double r = 0.01; r < 100; r *= 1.3)
        for (double a = -1; a < 2; a += 2) {
            NEAR(coef_of("cispo", &endless, r, a), coef_of("is", &plain, r, a));
            NEAR(coef_of("cispo_mask", &ppo, r, a), coef_of("ppo", &plain, r, a));
        }
}

static void test_far_away(void)
{
    g_autoptr(GError) error = NULL;
    const Loss *loss = loss_find("is");
    LossOptions options = loss_options(loss, &plain);
    LossToken t[] = {token(1, 1), token(1, 1)};
    LossStats stats = {0};

    t[0].logp = 0;
    t[0].anchor = -1e6;
    t[1].logp = -1e6;
    g_assert_true(loss_coefs(loss, &options, t, 2, &stats, &error));
    NEAR(t[0].ratio / exp(20), 1);
    NEAR(t[1].ratio / exp(-20), 1);
}

static void test_not_finite(void)
{
    const Loss *loss = loss_find("cispo");
    LossOptions options = loss_options(loss, &plain);

    for (int which = 0; which < 3; which++) {
        g_autoptr(GError) error = NULL;
        LossToken t[] = {token(1, 1), token(1, 1)};
        LossStats stats = {0};

        if (which == 0)
            t[1].advantage = NAN;
        else if (which == 1)
            t[1].logp = -INFINITY;
        else
            t[1].scale = INFINITY;
        g_assert_false(loss_coefs(loss, &options, t, 2, &stats, &error));
        g_assert_nonnull(strstr(error->message, "token 1 of rollout 0"));
    }
}

static void test_sequence_ratio(void)
{
    g_autoptr(GError) error = NULL;
    const Loss *loss = loss_find("gspo");
    LossOptions options = loss_options(loss, &(LossOptions){.eps_low = 9, .eps_high = 9});
    LossToken t[] = {token(2, 1), token(8, 1), token(3, 1)};
    LossStats stats = {0};

    t[2].rollout = 1;
    g_assert_true(loss_coefs(loss, &options, t, 3, &stats, &error));
    NEAR(t[0].coef, 4 * 0.25); /* the root of 2 times 8: trained tokens alone count */
    NEAR(t[1].coef, 4 * 0.25);
    NEAR(t[2].coef, 3 * 0.25);
    g_assert_cmpuint(stats.rollouts, ==, 2);
}

static void test_mismatch(void)
{
    static const struct {
        MismatchKind kind;
        double first, second;
    } rows[] = {
        {MISMATCH_NONE, 1, 1},        {MISMATCH_TIS, 2, 0.4},    {MISMATCH_ICEPOP, 0, 0},
        {MISMATCH_SEQ_TIS, 1.2, 1.2}, {MISMATCH_SEQ_MASK, 1, 1},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GError) error = NULL;
        const Loss *loss = loss_find("cispo");
        LossOptions options = loss_options(loss, &(LossOptions){.mismatch = rows[i].kind});
        LossToken t[] = {token(1, 1), token(1, 1)};
        LossStats stats = {0};

        t[0].mu = t[0].anchor - log(3);
        t[1].mu = t[1].anchor - log(0.4);
        g_assert_true(loss_coefs(loss, &options, t, 2, &stats, &error));
        NEAR(t[0].correction, rows[i].first);
        NEAR(t[1].correction, rows[i].second);
    }
}

/* beta times the derivative of the estimator, by differences. */
static void test_reference(void)
{
    for (KlKind kind = KL_K2; kind < KL_KINDS; kind++) {
        LossOptions options = {.kl = kind, .kl_beta = 0.3, .is_cap = 5};
        double ref = -1.4, d = 1e-6, value[2];
        g_autoptr(GError) error = NULL;
        LossToken t = token(1, 0);
        LossStats stats = {0};

        t.ref = ref;
        for (int side = 0; side < 2; side++) {
            double x = t.logp + (side ? d : -d) - ref;

            value[side] = kind == KL_K2 ? x * x / 2 : exp(-x) - 1 + x;
        }
        g_assert_true(loss_coefs(loss_find("cispo"), &options, &t, 1, &stats, &error));
        g_assert_cmpfloat_with_epsilon(-t.coef / t.scale, 0.3 * (value[1] - value[0]) / (2 * d),
                                       1e-8);
    }
}

static void test_stats(void)
{
    g_autoptr(GError) error = NULL;
    const Loss *loss = loss_find("cispo");
    LossOptions options = loss_options(loss, &plain);
    LossToken same[] = {token(1, 1), token(1, -1)}, moved[] = {token(9, 1), token(0.5, -1)};
    LossStats s = {0}, m = {0};

    same[1].logp = same[1].mu = same[1].anchor = -0.3;
    g_assert_true(loss_coefs(loss, &options, same, 2, &s, &error));
    g_assert_cmpfloat(loss_correlation(&s), ==, 1);
    g_assert_cmpfloat(s.mismatch_max, ==, 0);
    g_assert_cmpfloat(s.kl3, ==, 0);
    g_assert_true(loss_coefs(loss, &options, moved, 2, &m, &error));
    g_assert_cmpuint(m.ratio_high, ==, 1);
    g_assert_cmpuint(m.ratio_low, ==, 0);
    NEAR(m.ratio_max, 9);
    g_assert_cmpfloat(loss_ratio_quantile(&s, 0.99), ==, 1);
    g_assert_cmpfloat_with_epsilon(loss_ratio_quantile(&m, 0.5), 0.5, 0.003);
    g_assert_cmpfloat_with_epsilon(loss_ratio_quantile(&m, 0.99), 9, 0.05);
    g_assert_cmpfloat(loss_ratio_quantile(&(LossStats){0}, 0.99), ==, 0);
    g_assert_cmpfloat(loss_correlation(&m), ==, 1); /* mu does not vary: nothing to correlate */
    g_assert_cmpstr(loss_reason(&moved[0]), ==, "capped");
    g_assert_cmpstr(loss_reason(&moved[1]), ==, "");
}

/* ---- advantages ---- */

/* One group per row of rewards; NAN stands for unscorable. Every rollout has one trained token. */
static GPtrArray *groups_of(const double rewards[][4], guint n)
{
    GPtrArray *groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);

    for (guint g = 0; g < n; g++) {
        RolloutGroup *group = rollout_group_new((const int[]){1, 2}, 2, 4);

        for (guint i = 0; i < 4; i++) {
            rollout_fill(&group->rollouts[i], (const int[]){3}, NULL, NULL, 1);
            group->rollouts[i].unscorable = isnan(rewards[g][i]);
            group->rollouts[i].reward = rewards[g][i];
        }
        g_ptr_array_add(groups, group);
    }
    return groups;
}

static RolloutGroup **groups_data(GPtrArray *groups)
{
    return (RolloutGroup **)groups->pdata;
}

static double advantage_at(GPtrArray *groups, guint group, guint rollout)
{
    return groups_data(groups)[group]->rollouts[rollout].advantage;
}

static void test_advantages(void)
{
    static const double rewards[][4] = {{1, 0, 0, 0}, {1, 1, NAN, 0}};
    const double s0 = 0.5, s1 = sqrt(1.0 / 3); /* deviations of samples */
    const double batch = sqrt((0.75 + 2.0 / 3) / 6);
    const struct {
        AdvantageKind kind;
        double best, other, second;
    } rows[] = {
        {ADVANTAGE_GRPO, 0.75 / (s0 + 1e-4), -0.25 / (s0 + 1e-4), (1.0 / 3) / (s1 + 1e-4)},
        {ADVANTAGE_DR_GRPO, 0.75, -0.25, 1.0 / 3},
        {ADVANTAGE_RLOO, 1, -1.0 / 3, 0.5},
        {ADVANTAGE_BATCH_STD, 0.75 / (batch + 1e-4), -0.25 / (batch + 1e-4),
         1.0 / 3 / (batch + 1e-4)},
        {ADVANTAGE_MAX_RL, 3, -1, 0.5},
        {ADVANTAGE_PASSK, 1, 0, 0},
        {ADVANTAGE_REWARD, 1, 0, 1},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GPtrArray) groups = groups_of(rewards, 2);
        AdvantageOptions options = {.kind = rows[i].kind};
        AdvantageStats stats;

        advantages(groups_data(groups), 2, &options, &stats);
        NEAR(advantage_at(groups, 0, 0), rows[i].best);
        NEAR(advantage_at(groups, 0, 1), rows[i].other);
        NEAR(advantage_at(groups, 1, 0), rows[i].second);
        g_assert_cmpfloat(advantage_at(groups, 1, 2), ==, 0);
        g_assert_cmpuint(stats.unscorable, ==, 1);
        g_assert_cmpuint(stats.skipped, ==, 0);
        NEAR(stats.reward_mean, 3.0 / 7);
    }
}

static void test_nothing_to_compare(void)
{
    static const double rewards[][4] = {
        {1, 1, 1, 1}, {0, 0, 0, 0}, {NAN, NAN, 1, NAN}, {NAN, NAN, NAN, NAN}, {0.1, 0.1, 0.1, NAN}};

    for (AdvantageKind kind = 0; kind < ADVANTAGE_KINDS; kind++) {
        g_autoptr(GPtrArray) groups = groups_of(rewards, 5);
        AdvantageOptions options = {.kind = kind};
        AdvantageStats stats;

        if (kind == ADVANTAGE_REWARD || kind == ADVANTAGE_REINFORCE_PP)
            continue;
        advantages(groups_data(groups), 5, &options, &stats);
        g_assert_cmpuint(stats.skipped, ==, 5);
        g_assert_cmpuint(stats.solve_all, ==, 2);
        g_assert_cmpuint(stats.solve_none, ==, 1);
        for (guint g = 0; g < 5; g++)
            for (guint i = 0; i < 4; i++)
                g_assert_cmpfloat(advantage_at(groups, g, i), ==, 0);
    }
}

/* A rollout of three trained tokens weighs three times one of a single token; what the environment
 * wrote weighs nothing. */
static void test_whitening_counts_trained_tokens(void)
{
    static const guint8 mask[] = {1, 0, 0, 1, 1};
    static const int ids[] = {1, 2, 3, 4, 5};
    g_autoptr(RolloutGroup) group = rollout_group_new(ids, 2, 2);
    RolloutGroup *const groups[] = {group};
    AdvantageOptions options = {.kind = ADVANTAGE_REINFORCE_PP, .population = TRUE, .eps = 1e-12};
    AdvantageStats stats;

    rollout_fill(&group->rollouts[0], ids, mask, NULL, 5);
    rollout_fill(&group->rollouts[1], ids, NULL, NULL, 1);
    group->rollouts[0].reward = 1;
    advantages(groups, 1, &options, &stats);
    /* mean 3/4, deviation sqrt(3)/4 */
    g_assert_cmpfloat_with_epsilon(group->rollouts[0].advantage, 1 / sqrt(3), 1e-9);
    g_assert_cmpfloat_with_epsilon(group->rollouts[1].advantage, -sqrt(3), 1e-9);
}

/* ---- normalisers ---- */

static void test_normalisers(void)
{
    static const int ids[16];
    static const guint8 none[16];
    static const struct {
        NormKind kind;
        gboolean over_all;
        double first, second; /* Z of a rollout of 2 in the first group, of 4 in the second */
    } rows[] = {
        {NORM_GROUP_TOKENS, FALSE, 8 * 2, 4 * 2},
        {NORM_GROUP_TOKENS, TRUE, 8 * 3, 4 * 3},
        {NORM_BATCH_TOKENS, FALSE, 12, 12},
        {NORM_BATCH_TOKENS, TRUE, 17, 17},
        {NORM_SEQ_MEAN, FALSE, 2 * 3, 4 * 3},
        {NORM_SEQ_MEAN, TRUE, 2 * 4, 4 * 4},
        {NORM_CONST, FALSE, 300, 300},
        {NORM_SEQ_SUM, TRUE, 4, 4},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        RolloutGroup *groups[3];
        NormOptions options = {rows[i].kind, rows[i].over_all, 100};

        for (guint g = 0; g < 3; g++)
            groups[g] = rollout_group_new(ids, 1, 3);
        rollout_fill(&groups[0]->rollouts[0], ids, NULL, NULL, 2);
        rollout_fill(&groups[0]->rollouts[1], ids, NULL, NULL, 6);
        rollout_fill(&groups[0]->rollouts[2], ids, none, NULL, 9); /* padding counts nowhere */
        rollout_fill(&groups[1]->rollouts[0], ids, NULL, NULL, 4);
        rollout_fill(&groups[1]->rollouts[1], ids, NULL, NULL, 7);
        groups[1]->rollouts[1].no_loss = TRUE;
        rollout_fill(&groups[1]->rollouts[2], ids, NULL, NULL, 7);
        groups[1]->rollouts[2].unscorable = TRUE;
        rollout_fill(&groups[2]->rollouts[0], ids, NULL, NULL, 5);
        groups[2]->skipped = TRUE;
        normalise(groups, 3, &options);
        NEAR(groups[0]->rollouts[0].scale, 1 / rows[i].first);
        NEAR(groups[1]->rollouts[0].scale, 1 / rows[i].second);
        g_assert_cmpfloat(groups[0]->rollouts[2].scale, ==, 0);
        g_assert_cmpfloat(groups[1]->rollouts[1].scale, ==, 0);
        g_assert_cmpfloat(groups[2]->rollouts[0].scale, ==, 0);
        for (guint g = 0; g < 3; g++)
            rollout_group_free(groups[g]);
    }
}

static void test_pass_at_k(void)
{
    NEAR(pass_at_k(4, 1, 1), 0.25);
    NEAR(pass_at_k(4, 1, 4), 1);
    NEAR(pass_at_k(4, 2, 2), 1 - 1.0 / 6);
    NEAR(pass_at_k(10, 0, 5), 0);
    NEAR(pass_at_k(3, 1, 8), 1 - 0 * pass_at_k(1, 0, 1)); /* fewer than k draws: some must pass */
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/loss/on_policy_all_losses_are_the_same", test_all_agree_on_policy);
    g_test_add_func("/loss/what_each_makes_of_a_ratio", test_bounds);
    g_test_add_func("/loss/caps_are_absolute_and_special_cases_meet", test_cap_is_absolute);
    g_test_add_func("/loss/ratios_stay_finite", test_far_away);
    g_test_add_func("/loss/what_is_not_finite_is_named", test_not_finite);
    g_test_add_func("/loss/a_sequence_ratio_counts_trained_tokens", test_sequence_ratio);
    g_test_add_func("/loss/corrections_for_another_engine", test_mismatch);
    g_test_add_func("/loss/the_penalty_is_the_derivative_of_its_estimator", test_reference);
    g_test_add_func("/loss/statistics", test_stats);
    g_test_add_func("/advantage/every_kind", test_advantages);
    g_test_add_func("/advantage/groups_without_a_spread_say_nothing", test_nothing_to_compare);
    g_test_add_func("/advantage/whitening_counts_trained_tokens",
                    test_whitening_counts_trained_tokens);
    g_test_add_func("/normalise/every_kind", test_normalisers);
    g_test_add_func("/advantage/pass_at_k_is_unbiased", test_pass_at_k);
    return g_test_run();
}
