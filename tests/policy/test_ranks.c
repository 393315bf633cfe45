/*
 * One trainer on many ranks, as threads: the same bits for one, two and four data ranks, the same
 * training within rounding where ranks share the model or the rows of a batch; checkpoints that
 * any layout goes on from, and what one rank's failure becomes.
 */
#include "base/error.h"
#include "base/tree.h"
#include "policy/checkpoint.h"
#include "policy/ranks.h"
#include "policy/wire.h"
#include "tests/policy/model_lab.h"
#include "tests/kernels/rank_lab.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>

#define GROUPS 7
#define STEPS  3

/* A training of a few steps, by however many ranks. */
typedef struct {
    const Ops *ops;
    Layout layout;
    guint shares;
    ActsKeep keep;
    gboolean anchors;      /* ratios against log-probabilities of before the first step */
    gboolean broken;       /* one rollout cannot be trained on */
    const char *from, *to; /* checkpoints; NULL: none */
    const char *reference; /* a model to stay near to; NULL: none */
    const char *model;     /* where ranks read it from, rank 0 having its shape alone; NULL: it is
                              rank 0's */
    double *weights;       /* [count] of the whole model after it */
    gsize count;
    double loss, norm;
    guint64 tokens;
    char *why; /* it failed */
} Training;

static GPtrArray *groups_of(const Training *what)
{
    GPtrArray *groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);

    for (guint i = 0; i < GROUPS; i++)
        g_ptr_array_add(groups, lab_group(i + 1, 1 + (int)(i * 7 % 23), 1 + i % 3));
    ((RolloutGroup *)groups->pdata[3])->skipped = TRUE;
    if (what->broken)
        ((RolloutGroup *)groups->pdata[GROUPS - 1])->rollouts[0].advantage = NAN;
    return groups;
}

static gboolean train_steps(Training *what, Trainer *trainer, GError **error)
{
    const TrainerStep step = {
        .adamw = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-15, .weight_decay = 0.1},
        .clip_norm = 0.05};
    const Loss *cispo = loss_find("cispo");
    const LossOptions wanted = {.kl = what->reference ? KL_K3 : KL_NONE, .kl_beta = 0.5};
    TrainerLoss loss = {.loss = cispo, .options = loss_options(cispo, &wanted)};
    g_autoptr(GPtrArray) groups = groups_of(what);

    if (what->anchors && !trainer_logprobs(trainer, (RolloutGroup **)groups->pdata, groups->len,
                                           0.9, ROLLOUT_ANCHOR, error))
        return FALSE;
    if (what->reference && (!checkpoint_reference(what->reference, trainer, error) ||
                            !trainer_logprobs(trainer, (RolloutGroup **)groups->pdata, groups->len,
                                              0.9, ROLLOUT_REF, error)))
        return FALSE;
    for (guint i = 0; i < STEPS; i++) {
        TrainerStats stats = {0};

        if (!trainer_gradients(trainer, (RolloutGroup **)groups->pdata, groups->len, &loss, NULL,
                               NULL, &stats, error) ||
            !trainer_step(trainer, &step, &stats, error))
            return FALSE;
        what->loss = stats.loss.loss;
        what->norm = stats.grad_norm;
        what->tokens = stats.loss.tokens;
    }
    return TRUE;
}

/* The checkpoints before and after, where they are wanted. */
static gboolean train_all(Training *what, Trainer *trainer, GError **error)
{
    g_autoptr(json_t) state = json_object(), was = NULL;

    if (what->from && !(was = checkpoint_read(what->from, trainer, error)))
        return FALSE;
    return train_steps(what, trainer, error) &&
           (!what->to || checkpoint_write(what->to, trainer, state, "/nowhere", error));
}

/* The unrounded weights of all ranks, which must be those that the whole model was given. */
static void keep_weights(Training *what, Trainer *trainer, const Model *model)
{
    g_autoptr(GError) error = NULL;
    guint tensors = tensors_count(&model->config);

    for (guint i = 0; i < tensors; i++)
        what->count += tensors_info(&model->config, i).count;
    what->weights = g_new0(double, what->count);
    for (guint i = 0, at = 0; i < tensors; i++) {
        TensorInfo info = tensors_info(&model->config, i);
        gsize bytes = info.count * ops_real_size(model->ops->real);
        g_autofree void *rows = g_malloc0(bytes), *packed = g_malloc0(bytes);

        g_assert_true(ranks_get(trainer, KEPT_WEIGHTS, i, rows, &error));
        if (model->weights) {
            model_get(model, &info, packed);
            g_assert_cmpint(memcmp(rows, packed, bytes), ==, 0);
        }
        for (gsize j = 0; j < info.count; j++)
            what->weights[at++] = lab_number(model, rows, j);
    }
    g_assert_cmpuint(model->version, ==, trainer->model->version);
}

/* No rank's moments are more than a plan says. */
static void check_plan(const Trainer *trainer)
{
    gsize bytes = 0;

    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        bytes += 2 * params_bytes(trainer->blocks[b].moment1);
    g_assert_cmpuint(bytes, <=, trainer_moments_bytes(trainer->model, &trainer->layout));
    if (trainer->follows && trainer->layout.tp * trainer->layout.ep > 1)
        g_assert_cmpuint(trainer->model->weights_bytes, <, trainer->follows->weights_bytes);
}

static void lead(Comm *comm, Training *what)
{
    g_autoptr(GError) error = NULL;
    ModelConfig config;
    g_autoptr(Model) model = NULL;
    g_autoptr(Trainer) trainer = NULL;
    TrainerRanks ranks = {
        .comm = comm, .layout = what->layout, .shares = what->shares, .wait_s = 20};

    lab_golden_config(&config, 4);
    if (!what->model)
        model = lab_random_model(what->ops, &config, WEIGHT_REAL, 5);
    else if (comm->size == 1)
        model = model_load(what->ops, what->model, WEIGHT_REAL, 4, &error);
    else
        model = model_shape(what->ops, &config, WEIGHT_REAL);
    trainer = trainer_new_ranks(model, 64, what->keep, &ranks, &error);
    if (trainer)
        check_plan(trainer);
    if (trainer && (model->weights || checkpoint_load(what->model, trainer, &error)) &&
        train_all(what, trainer, &error))
        keep_weights(what, trainer, model);
    what->why = error ? g_strdup(error->message) : NULL;
}

static void rank_trains(Comm *comm, gpointer user)
{
    g_autoptr(GError) error = NULL;
    const Training *what = user;

    if (comm->rank == 0) {
        lead(comm, user);
        ranks_dismiss(comm);
    } else {
        ranks_follow(comm, what->ops, &error);
    }
}

static Training train_on(int ranks, Training what)
{
    lab_ranks(ranks, rank_trains, &what);
    return what;
}

static void training_clear(Training *what)
{
    g_free(what->weights);
    g_free(what->why);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Training, training_clear)

static double distance(const Training *a, const Training *b)
{
    double apart = 0, all = 0;

    g_assert_cmpuint(a->count, ==, b->count);
    for (gsize i = 0; i < a->count; i++) {
        apart += pow(a->weights[i] - b->weights[i], 2);
        all += b->weights[i] * b->weights[i];
    }
    return sqrt(apart / all);
}

static void assert_same(const Training *a, const Training *b)
{
    g_assert_cmpstr(a->why, ==, NULL);
    g_assert_cmpstr(b->why, ==, NULL);
    g_assert_cmpuint(a->count, ==, b->count);
    g_assert_cmpint(memcmp(a->weights, b->weights, a->count * sizeof *a->weights), ==, 0);
    g_assert_cmpfloat(a->loss, ==, b->loss);
    g_assert_cmpfloat(a->norm, ==, b->norm);
    g_assert_cmpuint(a->tokens, ==, b->tokens);
}

/* Four shares: the same bits whoever works on them. Against one share: rounding. */
static void test_same_bits(void)
{
    const Ops *const ops[] = {&ops_ref_f64, ops_cpu()};

    for (guint i = 0; i < G_N_ELEMENTS(ops); i++) {
        Training four = {.ops = ops[i], .shares = 4, .keep = i ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL};
        Training one = {.ops = ops[i], .shares = 1, .keep = ACTS_KEEP_ALL};
        g_auto(Training) single = train_on(1, one), r1 = train_on(1, four);
        g_auto(Training) r2 = train_on(2, four), r4 = train_on(4, four);

        assert_same(&r2, &r1);
        assert_same(&r4, &r1);
        g_test_message("%s: one share and four differ by %g", ops[i]->name, distance(&single, &r1));
        g_assert_cmpfloat(distance(&single, &r1), <, i ? 1e-6 : 1e-10);
        g_assert_cmpuint(single.tokens, ==, r1.tokens);
    }
}

/* Anchors that four ranks made together are those of one. */
static void test_anchors(void)
{
    Training what = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL};
    g_auto(Training) plain = train_on(1, what), r1 = {0}, r4 = {0};

    what.anchors = TRUE;
    r1 = train_on(1, what);
    r4 = train_on(4, what);
    assert_same(&r4, &r1);
    g_assert_cmpfloat(distance(&plain, &r1), >, 1e-5);
    what.broken = TRUE; /* an advantage alone: it stops nothing before the gradients */
    g_auto(Training) broken = train_on(4, what);
    g_assert_nonnull(strstr(broken.why, "rank 3: token"));
}

/* As many shares as ranks where nothing is said: near the single rank. */
static void test_near(void)
{
    Training plain = {.ops = &ops_ref_f64, .keep = ACTS_KEEP_ALL};
    g_auto(Training) r1 = train_on(1, plain);

    for (int ranks = 2; ranks <= 4; ranks++) {
        g_auto(Training) many = train_on(ranks, plain);

        g_assert_cmpstr(many.why, ==, NULL);
        g_assert_cmpfloat(distance(&many, &r1), <, 1e-10);
        g_assert_cmpfloat(fabs(many.norm / r1.norm - 1), <, 1e-12);
    }
}

/* ---- layouts ---- */

static const Layout layouts[] = {
    {.tp = 2},
    {.sp = 2},
    {.ep = 2, .dp = 2},
    {.sp = 4},
    {.tp = 2, .sp = 2},
    {.tp = 2, .dp = 2},
    {.ep = 4, .dp = 4},
    {.ep = 2, .sp = 2},
    {.tp = 2, .ep = 2, .dp = 2},
    {.ep = 2, .sp = 2, .dp = 2},
};

static guint ranks_of(const Layout *l)
{
    return MAX(l->tp, 1) * MAX(l->sp, 1) * MAX(l->dp, 1);
}

/* Three steps of four shares under a layout, against those of one rank. */
static void compare_layout(const Training *got, const Training *want, const Layout *l)
{
    double tolerance = want->ops->real == OPS_F64 ? 1e-10 : 1e-6;
    double apart = got->why ? INFINITY : distance(got, want);

    g_test_message("%s, tp %u ep %u sp %u on %u ranks: weights %.1e, loss %.1e, norm %.1e",
                   want->ops->name, l->tp, l->ep, l->sp, ranks_of(l), apart,
                   fabs(got->loss / want->loss - 1), fabs(got->norm / want->norm - 1));
    g_assert_cmpstr(got->why, ==, NULL);
    g_assert_cmpfloat(apart, <, tolerance);
    g_assert_cmpfloat(fabs(got->loss / want->loss - 1), <, 10 * tolerance);
    g_assert_cmpfloat(fabs(got->norm / want->norm - 1), <, 10 * tolerance);
    g_assert_cmpuint(got->tokens, ==, want->tokens);
}

static Training train_in(const Layout *layout, Training what)
{
    what.layout = *layout;
    return train_on((int)ranks_of(layout), what);
}

static void test_layouts(void)
{
    const Ops *const ops[] = {&ops_ref_f64, ops_cpu()};

    for (guint i = 0; i < G_N_ELEMENTS(ops); i++) {
        Training what = {.ops = ops[i], .shares = 4, .keep = ACTS_KEEP_ALL, .anchors = TRUE};
        g_auto(Training) want = train_on(1, what);

        for (guint n = 0; n < G_N_ELEMENTS(layouts); n += i ? 3 : 1) { /* in f32 some of them */
            g_auto(Training) got = {0};

            what.keep = n % 2 ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL;
            got = train_in(&layouts[n], what);
            compare_layout(&got, &want, &layouts[n]);
        }
    }
}

/* Three steps on `a` ranks, a checkpoint, three more on `b`; against the same on one. */
static void test_checkpoints(void)
{
    static const int ranks[][2] = {{1, 1}, {2, 1}, {1, 2}, {4, 2}};
    g_autoptr(GError) error = NULL;
    g_autofree char *top = g_dir_make_tmp("ranks-XXXXXX", &error);
    g_autofree char *dir = g_build_filename(top, "000003", NULL);
    Training first = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL, .to = dir};
    Training then = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL, .from = dir};
    g_auto(Training) want = {0};

    for (guint i = 0; i < G_N_ELEMENTS(ranks); i++) {
        g_auto(Training) a = train_on(ranks[i][0], first), b = train_on(ranks[i][1], then);

        if (i == 0)
            want = train_on(1, then);
        assert_same(&b, &want);
        g_assert_cmpfloat(distance(&a, &b), >, 1e-4);
    }
    g_assert_true(tree_remove(AT_FDCWD, top, &error));
}

/* The same from layout to layout; from the weights in files alone, where no rank has all; and near
 * to a model that the checkpoint before has. */
static void test_checkpoints_of_layouts(void)
{
    static const Layout way[][2] = {{{.tp = 2, .ep = 2, .dp = 2}, {.sp = 2}},
                                    {{.sp = 2}, {.tp = 2}},
                                    {{.tp = 2}, {.dp = 1}},
                                    {{.dp = 2}, {.ep = 2, .dp = 2}}};
    g_autoptr(GError) error = NULL;
    g_autofree char *top = g_dir_make_tmp("ranks-XXXXXX", &error);
    g_autofree char *dir = g_build_filename(top, "000003", NULL);
    g_autofree char *model = g_build_filename(dir, "model", NULL);
    Training first = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL, .to = dir};
    Training then = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL, .from = dir};
    Training fresh = {.ops = ops_cpu(), .shares = 4, .keep = ACTS_KEEP_ALL};
    g_auto(Training) begun = train_on(1, first), plain = train_on(1, then), want = {0};
    g_auto(Training) loaded = {0}, parts = {0};

    fresh.model = model;
    loaded = train_on(1, fresh);
    parts = train_in(&way[0][0], fresh);
    compare_layout(&parts, &loaded, &way[0][0]);
    g_assert_cmpfloat(distance(&loaded, &begun), >, 1e-4);
    then.reference = model;
    want = train_on(1, then);
    g_assert_cmpfloat(distance(&plain, &want), >, 1e-5);
    for (guint i = 0; i < G_N_ELEMENTS(way); i++) {
        g_auto(Training) a = train_in(&way[i][0], first), b = train_in(&way[i][1], then);

        compare_layout(&a, &begun, &way[i][0]);
        compare_layout(&b, &want, &way[i][1]);
    }
    g_assert_true(tree_remove(AT_FDCWD, top, &error));
}

/* Ranks that meet within passes: one cannot go on, all of them end, and rank 0 says which. */
static void test_one_layout_fails(void)
{
    static const Layout some[] = {{.ep = 2, .dp = 2}, {.tp = 2, .sp = 2}};
    static const char *const says[] = {"rank 1: token", "token"};

    for (guint i = 0; i < G_N_ELEMENTS(some); i++) {
        g_auto(Training) broken =
            train_in(&some[i], (Training){.ops = ops_cpu(), .broken = TRUE, .keep = ACTS_KEEP_ALL});

        g_assert_nonnull(broken.why);
        g_assert_nonnull(strstr(broken.why, says[i]));
        g_assert_null(broken.weights);
    }
}

/* What cannot be shared is refused with the numbers, before any rank is told. */
static void test_refused(void)
{
    static const struct {
        Layout layout;
        int ranks;
        const char *says;
    } rows[] = {
        {{.tp = 3}, 3, "tp = 3 does not divide 4 heads"},
        {{.tp = 2}, 3, "tp = 2 and sp = 1 want a multiple of 2 ranks, there are 3"},
        {{.tp = 4}, 4, "4 ranks cannot deal out 2 kv heads, or 4 ranks 4 experts"},
        {{.ep = 3}, 3, "tp x ep = 3 does not divide 4 experts"},
        {{.ep = 2}, 1, "ep = 2 does not divide 1 (sp x dp) ranks"},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_auto(Training) got =
            train_on(rows[i].ranks, (Training){.ops = ops_cpu(), .layout = rows[i].layout});

        g_assert_cmpstr(got.why, ==, rows[i].says);
    }
}

/* What cannot be trained on is rank 3's; rank 0 says so, and nothing was stepped. */
static void test_one_rank_fails(void)
{
    g_auto(Training) broken =
        train_on(4, (Training){.ops = ops_cpu(), .keep = ACTS_KEEP_ALL, .broken = TRUE});

    g_assert_nonnull(broken.why);
    g_assert_nonnull(strstr(broken.why, "rank 3: token"));
    g_assert_null(broken.weights);
}

static void test_counts(void)
{
    g_auto(Training) odd = train_on(3, (Training){.ops = ops_cpu(), .shares = 4});

    g_assert_cmpstr(odd.why, ==, "3 ranks do not divide 4 shares of a minibatch");
}

/* A follower that never comes: rank 0 names it. */
static void rank_is_silent(Comm *comm, gpointer user)
{
    Training *what = user;

    if (comm->rank > 0)
        return;
    comm_timeout(comm, 0.1);
    g_assert_false(comm_barrier(comm));
    lead(comm, what);
}

static void test_silent(void)
{
    g_auto(Training) what = {.ops = ops_cpu()};

    lab_ranks(2, rank_is_silent, &what);
    g_assert_nonnull(what.why);
    g_assert_nonnull(strstr(what.why, "rank 1 is silent for 0.1 s"));
}

/* ---- rollouts as bytes ---- */

static GByteArray *wire_of(GPtrArray *groups)
{
    GByteArray *bytes = g_byte_array_new();

    wire_put(bytes, (RolloutGroup *const *)groups->pdata, groups->len);
    return bytes;
}

static void test_wire(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) groups = groups_of(&(Training){0}), back = NULL;
    RolloutGroup *rich = groups->pdata[1];
    g_autoptr(GByteArray) bytes = NULL, again = NULL;

    rollout_group_routes(rich, 16);
    rich->rollouts[0].anchor = g_new0(float, rich->rollouts[0].n);
    rich->rollouts[0].credit = g_new0(double, rich->rollouts[0].n);
    rich->rollouts[0].unscorable = TRUE;
    bytes = wire_of(groups);
    back = wire_get(bytes->data, bytes->len, &error);
    g_assert_no_error(error);
    again = wire_of(back);
    g_assert_cmpmem(bytes->data, bytes->len, again->data, again->len);
    for (gsize n = 0; n < bytes->len; n += n % 7 + 1) {
        g_assert_null(wire_get(bytes->data, n, &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
        g_clear_error(&error);
    }
}

/* Any byte may be anything: refused, or read without a wrong step. */
static void test_wire_mutants(void)
{
    g_autoptr(GPtrArray) groups = groups_of(&(Training){0});
    g_autoptr(GByteArray) bytes = wire_of(groups);
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);

    for (int i = 0; i < 4000; i++) {
        guint at = (guint)g_rand_int_range(rand, 0, (gint32)bytes->len);
        guint8 was = bytes->data[at];
        g_autoptr(GError) error = NULL;
        g_autoptr(GPtrArray) back = NULL;

        bytes->data[at] = (guint8)g_rand_int(rand);
        back = wire_get(bytes->data, bytes->len, &error);
        g_assert_true((back == NULL) == (error != NULL));
        bytes->data[at] = was;
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ranks/shares_make_the_bits", test_same_bits);
    g_test_add_func("/ranks/anchors", test_anchors);
    g_test_add_func("/ranks/near_the_single_rank", test_near);
    g_test_add_func("/ranks/layouts", test_layouts);
    g_test_add_func("/ranks/checkpoints_of_any_number_of_ranks", test_checkpoints);
    g_test_add_func("/ranks/checkpoints_of_any_layout", test_checkpoints_of_layouts);
    g_test_add_func("/ranks/one_rank_fails", test_one_rank_fails);
    g_test_add_func("/ranks/one_of_a_layout_fails", test_one_layout_fails);
    g_test_add_func("/ranks/refused", test_refused);
    g_test_add_func("/ranks/counts_that_do_not_divide", test_counts);
    g_test_add_func("/ranks/silent", test_silent);
    g_test_add_func("/ranks/wire", test_wire);
    g_test_add_func("/ranks/wire_mutants", test_wire_mutants);
    return g_test_run();
}
