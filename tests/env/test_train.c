/*
 * What a training run is made of, apart from models and boxes: the compact dialect, configurations,
 * metrics and event files.
 */
#include "env/dialect.h"
#include "env/tensorboard.h"
#include "env/train_config.h"
#include "env/train_dialect.h"
#include "env/train_kind.h"
#include "env/train_log.h"
#include "env/train_window.h"
#include "policy/token_train.h"

#include "base/tree.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>

/* ---- the dialect ---- */

static const char clamp_c[] = "int clamp(int x, int lo, int hi)\n"
                              "{\n"
                              "    if (x > lo)\n"
                              "        return lo;\n"
                              "\n"
                              "    return x<hi ? x : hi;\n"
                              "}\n";

static Source *source_of(const char *path, const char *text)
{
    g_autoptr(json_t) files = json_pack("{s:s, s:s}", path, text, "other.txt", "not shown\n");
    const char *const paths[] = {path, NULL};
    g_autoptr(GError) error = NULL;
    Source *source = source_new(files, paths, &error);

    g_assert_no_error(error);
    return source;
}

/* The text of the file after an action; NULL: it is none. */
static char *after(const Source *source, const char *path, const char *action)
{
    g_autoptr(json_t) calls = dialect_action(source, action, NULL);
    char *text = g_strdup(json_string_value(json_object_get(source->files, path)));
    json_t *call;
    size_t i;

    if (!calls) {
        g_free(text);
        return NULL;
    }
    json_array_foreach(calls, i, call)
    {
        const char *old = json_string_value(json_object_get(call, "old_str"));
        const char *at = strstr(text, old);
        char *next;

        g_assert_nonnull(at);
        g_assert_null(strstr(at + 1, old)); /* the place is the only one */
        next =
            g_strdup_printf("%.*s%s%s", (int)(at - text), text,
                            json_string_value(json_object_get(call, "new_str")), at + strlen(old));
        g_free(text);
        text = next;
    }
    return text;
}

static void test_prompt(void)
{
    g_autoptr(Source) c = source_of("clamp.c", clamp_c);
    g_autoptr(Source) python = source_of("m.py", "def f(a):\n    if a:\n        return 'x y'\n");
    g_autofree char *c_text = dialect_text(c), *python_text = dialect_text(python);

    g_assert_cmpstr(c_text, ==,
                    "1 int clamp ( int x , int lo , int hi )\n"
                    "2 {\n"
                    "3 if ( x > lo )\n"
                    "4 return lo ;\n"
                    "5 return x < hi ? x : hi ;\n"
                    "6 }\n");
    g_assert_cmpstr(python_text, ==, "1 def f ( a ) :\n2 > if a :\n3 > > return 'x y'\n");
}

static void test_actions(void)
{
    static const struct {
        const char *action, *want; /* lines that must then be there */
    } rows[] = {
        {"3 if ( x < lo )", "    if (x < lo)\n"},
        {"5 return x > hi ? x : hi ;", "    return x>hi ? x : hi;\n"},
        {"5 return x < hi ? lo : hi ;\n", "    return x<hi ? lo : hi;\n"},
        {"4 return hi ;\n3 if ( x < lo )", "    if (x < lo)\n        return hi;\n"},
        {"1 int clamp ( int x , int lo )", "int clamp(int x, int lo)\n"},
        {"3  if(x)", "    if (x)\n"},
        {"3 while ( x > lo )", "    while (x > lo)\n"},
        {"3 if ( x > lo ) {", "    if (x > lo) {\n"},
        {"3 > <", "    > <\n"},
        {"4 return lo ; }\n4 return x ;", "        return x ;\n"},
    };
    g_autoptr(Source) source = source_of("clamp.c", clamp_c);

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *text = after(source, "clamp.c", rows[i].action);

        g_assert_nonnull(text);
        g_assert_nonnull(strstr(text, rows[i].want));
    }
}

static void test_no_actions(void)
{
    static const char *const rows[] = {
        "",       "3",    "3 ",       "0 a",      "7 a",      "x a",
        "-3 a",   "+3 a", " 3 a",     "3.0 a",    "3\ta",     "3 if ( x > lo )",
        " ",      "a",    "3 a\n\n3", "3 a\n9 a", "3 a\n3 a", "99999999999 a",
        "3 \xff",
    };
    g_autoptr(Source) source = source_of("clamp.c", clamp_c);
    g_autoptr(GString) many = g_string_new(NULL);

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(json_t) calls = dialect_action(source, rows[i], NULL);
        g_autofree char *shown = g_strescape(rows[i], NULL);

        g_test_message("%s", shown);
        g_assert_null(calls);
    }
    for (guint i = 0; i <= DIALECT_EDITS_MAX; i++)
        g_string_append(many, i % 2 ? "3 a\n" : "3 b\n");
    g_assert_null(dialect_action(source, many->str, NULL));
}

/* Lines that occur twice are changed where the number says. */
static void test_twins(void)
{
    static const char twins[] = "a = 1\nb = 2\na = 1\nb = 2\na = 1\n";
    g_autoptr(Source) source = source_of("t.py", twins);
    g_autofree char *middle = after(source, "t.py", "3 a = 7");
    g_autofree char *last = after(source, "t.py", "5 a = 7");

    g_assert_cmpstr(middle, ==, "a = 1\nb = 2\na = 7\nb = 2\na = 1\n");
    g_assert_cmpstr(last, ==, "a = 1\nb = 2\na = 1\nb = 2\na = 7\n");
}

static void test_fixes(void)
{
    static const struct {
        const char *bad, *good;
    } rows[] = {
        {"x = a + b\n", "x = a - b\n"},
        {"f(a, a, b)\n", "f(a, c, b)\n"},
        {"i < n\n", "i < n - 1\n"},
        {"i < n - 1\n", "i < n\n"},
        {"!x && y\n", "x && y\n"},
        {"x && y\n", "!x && y\n"},
        {"a\nb + b\nc\n", "a\nb + c\nd\n"},
        {"f(a, b)\n", "f(b, a)\n"},
        {"s[i] = s[i];\n", "s[i] = s[j];\n"},
        {"x\n", "x y\n"},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Source) bad = source_of("f.c", rows[i].bad),
                          good = source_of("f.c", rows[i].good);
        g_autofree char *fix = dialect_fix(bad, good), *text = after(bad, "f.c", fix);
        g_autoptr(Source) got = text ? source_of("f.c", text) : NULL;
        g_autofree char *got_text = got ? dialect_text(got) : NULL;
        g_autofree char *want_text = dialect_text(good);

        g_test_message("%s", fix);
        g_assert_cmpstr(got_text, ==, want_text);
    }
    {
        g_autoptr(Source) bad = source_of("f.c", "a\n"), good = source_of("f.c", "a\nb\n");

        g_assert_null(dialect_fix(bad, good));
    }
}

static void test_random_edits(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(5);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(Source) source = source_of("clamp.c", clamp_c);

    for (int i = 0; i < 300; i++) {
        char *action = dialect_random(source, rand);
        g_autofree char *text = after(source, "clamp.c", action);

        g_assert_nonnull(text);
        g_hash_table_add(seen, action);
    }
    g_assert_cmpuint(g_hash_table_size(seen), >, 15);
}

static void test_turns(void)
{
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(Tokenizer) tokenizer = token_trainer_finish(trainer, 260, &error);
    g_autoptr(Source) source = source_of("a.c", "x;\n");
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GString) text = g_string_new(NULL);

    g_assert_no_error(error);
    g_assert_true(dialect_prompt(tokenizer, source, ids, &error));
    g_assert_true(dialect_answer(tokenizer, "bad", FALSE, ids, &error));
    g_assert_true(dialect_answer(tokenizer, "fail", TRUE, ids, &error));
    g_assert_true(tokenizer_decode(tokenizer, (const gint32 *)(gpointer)ids->data, ids->len,
                                   TOKENS_SPECIALS, text, &error));
    g_assert_cmpstr(text->str, ==,
                    TOKEN_BOS "1 x ;\n" TOKEN_EOS TOKEN_BOS TOKEN_EOS TOKEN_BOS
                              "bad" TOKEN_EOS TOKEN_BOS TOKEN_BOS "fail" TOKEN_EOS TOKEN_BOS);
}

/* ---- demonstrations ---- */

/* The trained tokens of a demonstration, as text. */
static char *learnt_text(const RolloutGroup *group, const Tokenizer *tokenizer)
{
    const Rollout *r = group->rollouts;
    g_autoptr(GArray) ids = tokens_new();
    GString *text = g_string_new(NULL);

    for (int i = 0; i < r->n; i++)
        if (r->mask[i])
            g_array_append_val(ids, r->ids[i]);
    g_assert_true(tokenizer_decode(tokenizer, (const gint32 *)(gpointer)ids->data, ids->len,
                                   TOKENS_SPECIALS, text, NULL));
    return g_string_free(text, FALSE);
}

static RolloutGroup *demo_of(TrainTask *task, const Tokenizer *tokenizer, const DemoOptions *o)
{
    g_autoptr(GPtrArray) tasks = g_ptr_array_new();
    g_autoptr(GRand) rand = g_rand_new_with_seed(3);
    g_autoptr(GPtrArray) groups = NULL;

    g_ptr_array_add(tasks, task);
    groups = demos_make(&dialect_compact, tasks, tokenizer, o, 1, rand, NULL);
    g_assert_cmpuint(groups->len, ==, 1);
    return g_ptr_array_steal_index(groups, 0);
}

static void test_demos(void)
{
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    g_autoptr(Tokenizer) tokenizer = token_trainer_finish(trainer, 260, NULL);
    g_autoptr(Source) bad = source_of("a.c", "x < y + z;\n"),
                      good = source_of("a.c", "x > y + z;\n");
    g_autoptr(GArray) prompt = tokens_new();
    g_autofree char *fix = dialect_fix(bad, good);
    TrainTask task = {
        .kind = &kind_repair, .source = bad, .fixed = good, .fix = fix, .prompt = prompt};
    const DemoOptions wrong = {.turns = 3}, skipped = {.turns = 3, .skip_wrong = TRUE};
    const DemoOptions right = {.gold = 1, .turns = 3, .read = 0.25};

    g_assert_true(dialect_prompt(tokenizer, bad, prompt, NULL));
    {
        g_autoptr(RolloutGroup) demo = demo_of(&task, tokenizer, &wrong);
        g_autofree char *text = learnt_text(demo, tokenizer);
        g_auto(GStrv) actions = g_strsplit(text, TOKEN_EOS, -1);

        g_assert_cmpuint(g_strv_length(actions), ==, 4); /* three, and nothing after the last */
        g_assert_cmpint(demo->prompt_n, ==, prompt->len);
    }
    {
        g_autoptr(RolloutGroup) demo = demo_of(&task, tokenizer, &skipped);
        g_autofree char *text = learnt_text(demo, tokenizer);
        g_autofree char *want = g_strconcat(fix, TOKEN_EOS, NULL);

        g_assert_cmpstr(text, ==, want);
        g_assert_cmpint(demo->rollouts[0].n, >, 3 * rollout_trained(demo->rollouts) / 2);
    }
    {
        g_autoptr(RolloutGroup) demo = demo_of(&task, tokenizer, &right);
        const Rollout *r = demo->rollouts;
        double read = 0, acted = 0;

        g_assert_cmpint(demo->prompt_n, ==, 1);
        g_assert_cmpint(rollout_trained(r), ==, r->n);
        for (int i = 0; i < r->n; i++)
            *((guint)i + 1 < prompt->len ? &read : &acted) += r->credit[i];
        g_assert_cmpfloat(fabs(acted - r->n), <, 1e-9);
        g_assert_cmpfloat(fabs(read - 0.25 * r->n), <, 1e-9);
    }
}

/* ---- configurations ---- */

static void refused(const char *setting, const char *why)
{
    const char *const settings[] = {setting, NULL};
    g_autoptr(GError) error = NULL;

    g_assert_null(train_config_load(NULL, settings, &error));
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, why));
}

static void test_config(void)
{
    const char *const settings[] = {"optim.lr=0.5", "loss.name=gspo", "loss.over_all=false",
                                    "loss.advantage=rloo", NULL};
    g_autoptr(GError) error = NULL;
    g_autoptr(TrainConfig) plain = train_config_load(NULL, NULL, &error);
    g_autoptr(TrainConfig) config = train_config_load(NULL, settings, &error);
    const Loss *loss;

    g_assert_no_error(error);
    g_assert_cmpfloat(plain->optim_eps, ==, 1e-15);
    g_assert_cmpfloat(config->optim_lr, ==, 0.5);
    g_assert_cmpfloat(train_config_loss(config, &loss).eps_high, ==, 4e-4);
    g_assert_cmpstr(loss->name, ==, "gspo");
    g_assert_cmpint(train_config_advantage(config).kind, ==, ADVANTAGE_RLOO);
    g_assert_cmpint(train_config_advantage(plain).kind, ==, ADVANTAGE_GRPO);
    g_assert_cmpint(train_config_norm(config).kind, ==, NORM_SEQ_MEAN);
    g_assert_cmpint(train_config_norm(plain).kind, ==, NORM_GROUP_TOKENS);
    refused("optim.lrr=1", "did you mean optim.lr?");
    refused("optim.lr=2", "must be a number from 0 to 1");
    refused("optim.lr=nan", "must be a number");
    refused("optim.lr=0.1x", "must be a number");
    refused("run.updates=1.5", "must be a whole number");
    refused("loss.over_all=yes", "must be true or false");
    refused("loss.name=cispo2", "one of cispo, cispo_mask");
    refused("loss.kl=k1", "one of none, k2, k3");
    refused("model.weights=int8", "one of f32, bf16");
    refused("model.pattern=lsx", "made of l and s");
    refused("model.topk=5", "more than the 4 experts");
    refused("optim.minibatches=64", "more than the 32 groups");
    refused("optim.lr", "not of the form");
}

static void test_config_file(void)
{
    g_autofree char *dir = g_dir_make_tmp("assay-train-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "run.conf", NULL);
    const char *const settings[] = {"run.seed=9", NULL};
    g_autoptr(GError) error = NULL;
    g_autoptr(TrainConfig) config = NULL, again = NULL;
    g_autofree char *text = NULL, *text_again = NULL;

    g_assert_true(g_file_set_contents(path, "[run]\nseed = 3\nupdates = 7\n", -1, NULL));
    config = train_config_load(path, settings, &error);
    g_assert_no_error(error);
    g_assert_cmpint(config->run_seed, ==, 9);
    g_assert_cmpint(config->run_updates, ==, 7);
    text = train_config_text(config);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    again = train_config_load(path, NULL, &error);
    g_assert_no_error(error);
    text_again = train_config_text(again);
    g_assert_cmpstr(text, ==, text_again);
    g_assert_true(g_file_set_contents(path, "[run]\nsede = 3\n", -1, NULL));
    g_assert_null(train_config_load(path, NULL, &error));
    g_assert_nonnull(strstr(error->message, "run.conf: unknown key run.sede; did you mean"));
    tree_remove(AT_FDCWD, dir, NULL);
}

/* ---- metrics ---- */

static void test_log(void)
{
    g_autofree char *dir = g_dir_make_tmp("assay-train-XXXXXX", NULL);
    g_autoptr(GError) error = NULL;

    for (int life = 0; life < 2; life++) { /* the second goes on from step 2 */
        g_autoptr(TrainLog) log = train_log_open(dir, life ? 2 : 0, &error);

        g_assert_no_error(error);
        for (gint64 step = life ? 3 : 1; step <= (life ? 3 : 4); step++) {
            train_log_put(log, "reward/mean", (double)step / 4);
            train_log_put(log, "loss/total", life ? (double)NAN : 1);
            g_assert_true(train_log_end(log, "rl", step, &error));
        }
        g_assert_true(train_log_end(log, "rl", 9, &error)); /* nothing was put: no line */
    }
    {
        g_autoptr(GPtrArray) rows = train_log_read(dir, &error);

        g_assert_cmpuint(rows->len, ==, 3);
        g_assert_cmpint(json_integer_value(json_object_get(rows->pdata[2], "step")), ==, 3);
        g_assert_true(json_is_null(json_object_get(rows->pdata[2], "loss/total")));
        g_assert_cmpfloat(json_number_value(json_object_get(rows->pdata[0], "reward/mean")), ==,
                          0.25);
    }
    tree_remove(AT_FDCWD, dir, NULL);
}

/* The bytes that every such file begins with, and the record of a scalar. */
static void test_events(void)
{
    static const guint8 head[] = {0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22, 0x09};
    static const guint8 scalar[] = {0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01,
                                    'a',  0x15, 0,    0,    0x80, 0x3f};
    g_autofree char *dir = g_dir_make_tmp("assay-train-XXXXXX", NULL), *contents = NULL;
    const char *const tags[] = {"a"};
    const double values[] = {1};
    g_autoptr(GError) error = NULL;
    g_autoptr(GDir) entries = NULL;
    g_autofree char *path = NULL;
    gsize len;

    g_assert_cmphex(tensorboard_crc("123456789", 9), ==, 0xe3069283);
    {
        g_autoptr(TensorBoard) board = tensorboard_open(dir, &error);

        g_assert_true(tensorboard_add(board, 300, 1, tags, values, 1, &error));
    }
    entries = g_dir_open(dir, 0, NULL);
    path = g_build_filename(dir, g_dir_read_name(entries), NULL);
    g_assert_nonnull(strstr(path, "tfevents"));
    g_assert_true(g_file_get_contents(path, &contents, &len, NULL));
    g_assert_true(memcmp(contents, head, sizeof head) == 0);
    g_assert_true(memcmp(contents + len - 4 - sizeof scalar, scalar, sizeof scalar) == 0);
    tree_remove(AT_FDCWD, dir, NULL);
}

/* ---- windows ---- */

/* Batches until the next window, of perplexity exp(nll0 + i * slope) and this length; 0: never. */
static guint batches_until(const TrainConfig *config, double slope, double p99)
{
    TrainWindow window;
    guint n = 0;

    window_init(&window);
    for (guint i = 1; i <= 50 && n == 0; i++) {
        WindowSeen seen = {.window = 0, .nll = 1 + i * slope, .p99 = p99}, other = {.window = 1};

        g_assert_false(window_add(&window, config, &other)); /* of another window: not counted */
        n = window_add(&window, config, &seen) ? i : 0;
    }
    g_assert_cmpuint(window.at, ==, n > 0);
    window_clear(&window);
    return n;
}

static void test_windows(void)
{
    static const char *const settings[] = {"rollout.windows=16, 24,32", "rollout.window_span=3",
                                           NULL};
    static const char *const bad[] = {
        "16,16,32", "32,16",  "16,24", "0,32",
        "x",        "16,,32", "-1,32", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,32"};
    g_autoptr(GError) error = NULL;
    g_autoptr(TrainConfig) config = train_config_load(NULL, settings, &error);

    g_assert_no_error(error);
    g_assert_cmpint(window_tokens(config, 0), ==, 16);
    g_assert_cmpint(window_tokens(config, 1), ==, 24);
    g_assert_cmpint(window_tokens(config, 7), ==, 32);
    g_assert_cmpuint(batches_until(config, 0, 15), ==, 6);
    g_assert_cmpuint(batches_until(config, 0, 14), ==, 0);     /* short */
    g_assert_cmpuint(batches_until(config, -0.02, 16), ==, 0); /* still falling */
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *text = g_strconcat("rollout.windows=", bad[i], NULL);
        const char *const wrong[] = {text, NULL};
        g_autoptr(TrainConfig) none = train_config_load(NULL, wrong, &error);

        g_assert_null(none);
        g_assert_nonnull(error);
        g_clear_error(&error);
    }
}

static void test_window_state(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) json = NULL;
    g_autoptr(json_t) damaged = json_pack("{s:i, s:[[i, f]]}", "at", 1, "seen", 0, 0.5);
    WindowSeen seen = {.window = 2, .nll = 1.0 / 3, .p99 = 17};
    TrainWindow window, again;

    window_init(&window);
    window_init(&again);
    window.at = 2;
    g_array_append_val(window.seen, seen);
    json = window_json(&window);
    g_assert_true(window_read(&again, json, &error));
    g_assert_cmpuint(again.at, ==, 2);
    g_assert_cmpuint(again.seen->len, ==, 1);
    g_assert_true(g_array_index(again.seen, WindowSeen, 0).nll == seen.nll);
    g_assert_true(g_array_index(again.seen, WindowSeen, 0).p99 == seen.p99);
    g_assert_false(window_read(&again, damaged, &error));
    window_clear(&window);
    window_clear(&again);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dialect/what_is_shown", test_prompt);
    g_test_add_func("/dialect/actions_apply_by_tokens", test_actions);
    g_test_add_func("/dialect/what_is_no_action", test_no_actions);
    g_test_add_func("/dialect/equal_lines_are_told_apart", test_twins);
    g_test_add_func("/dialect/fixes_are_actions", test_fixes);
    g_test_add_func("/dialect/random_edits_apply", test_random_edits);
    g_test_add_func("/dialect/turns_have_marks", test_turns);
    g_test_add_func("/demos/what_is_learnt_of_them", test_demos);
    g_test_add_func("/config/values_and_what_is_refused", test_config);
    g_test_add_func("/config/files", test_config_file);
    g_test_add_func("/log/lines_after_the_checkpoint_go", test_log);
    g_test_add_func("/log/event_files", test_events);
    g_test_add_func("/windows/both_conditions_move_on_and_neither_alone", test_windows);
    g_test_add_func("/windows/state_is_read_back_bit_for_bit", test_window_state);
    return g_test_run();
}
