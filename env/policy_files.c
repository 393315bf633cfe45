/*
 * assay policy init, inspect, verify, quantize, flops: models as files and as numbers.
 *
 * Invariants:
 *   1. No daemon is asked and no model is computed with; inspect and flops read no weights.
 *   2. JSON carries whole numbers of bytes; text is for reading, in units of 1000.
 */
#include "env/policy_runtime.h"

#include "base/error.h"
#include "policy/coded.h"
#include "policy/flops.h"
#include "policy/init.h"
#include "policy/plan.h"
#include "policy/tokenizer.h"
#include "policy/verify.h"

#include <string.h>

#define TOKENS_PER_K 1024.0

/* 45,943,357,440 */
static char *grouped(guint64 number)
{
    g_autofree char *digits = g_strdup_printf("%" G_GUINT64_FORMAT, number);
    g_autoptr(GString) text = g_string_new(NULL);
    gsize len = strlen(digits);
    for (gsize i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            g_string_append_c(text, ',');
        g_string_append_c(text, digits[i]);
    }
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static char *bytes_text(guint64 bytes)
{
    static const struct {
        double unit;
        const char *name;
    } units[] = {{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};
    for (guint i = 0; i < G_N_ELEMENTS(units); i++)
        if ((double)bytes >= units[i].unit)
            return g_strdup_printf("%.2f %s", (double)bytes / units[i].unit, units[i].name);
    return g_strdup_printf("%" G_GUINT64_FORMAT " B", bytes);
}

/* --- init */

static gboolean config_wanted(Cli *cli, ModelConfig *config, GError **error)
{
    const char *preset = cli_option(cli, "preset"), *file = cli_option(cli, "config");
    if ((preset == NULL) == (file == NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "give --preset or --config, one of them");
    return preset != NULL ? init_preset(preset, config, error)
                          : model_config_read(file, config, error);
}

static gboolean dtype_wanted(Cli *cli, TensorDtype *dtype, GError **error)
{
    const char *given = cli_option(cli, "dtype");
    g_autofree char *name = g_ascii_strup(given != NULL ? given : "bf16", -1);
    *dtype = tensor_dtype_parse(name);
    return (*dtype != TENSOR_NONE && *dtype <= TENSOR_BF16) ||
           error_set(error, ASSAY_ERROR_INPUT, "--dtype: %s is none of bf16, f16, f32, f64", given);
}

int cli_policy_init(Cli *cli)
{
    GError *error = NULL;
    ModelConfig config;
    TensorDtype dtype;
    guint64 seed = 0;
    const char *out = cli_option(cli, "out");
    if (out == NULL)
        return cli_usage(cli, "policy init needs --out DIR");
    if (!config_wanted(cli, &config, &error) || !dtype_wanted(cli, &dtype, &error) ||
        !cli_number(cli, "seed", 0, G_MAXUINT64, &seed, &error) ||
        !init_checkpoint(&config, seed, dtype, SAFETENSORS_SHARD_BYTES, out, &error))
        return cli_error(cli, error, NULL);
    g_autofree char *params = grouped(tensors_params(&config));
    cli_say(cli, "%u tensors, %s parameters in %s", tensors_count(&config), params,
            tensor_dtype_name(dtype));
    puts(out);
    return CLI_OK;
}

/* --- inspect */

/* How much of a checkpoint is there, and does it fit the config? A misfit is an error. */
static json_t *checkpoint_json(const ModelConfig *config, const char *path, GError **error)
{
    g_autofree char *index_file = g_build_filename(path, SAFETENSORS_INDEX, NULL);
    g_autofree char *single = g_build_filename(path, SAFETENSORS_SINGLE, NULL);
    gboolean sharded = g_file_test(index_file, G_FILE_TEST_EXISTS);
    if (!sharded && !g_file_test(single, G_FILE_TEST_EXISTS))
        return json_pack("{s:s}", "found", "config");

    g_autoptr(GError) why = NULL;
    g_autoptr(Safetensors) st = safetensors_open(path, &why);
    if (st != NULL)
        return tensors_check(config, st, error)
                   ? json_pack("{s:s, s:I, s:I, s:I}", "found", "weights", "tensors",
                               (json_int_t)safetensors_count(st), "files",
                               (json_int_t)safetensors_files(st), "bytes",
                               (json_int_t)safetensors_bytes(st))
                   : NULL;
    if (!sharded || !g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
        g_propagate_error(error, g_steal_pointer(&why));
        return NULL;
    }
    g_autoptr(GHashTable) index = safetensors_read_index(path, error);
    if (index == NULL || !tensors_check_names(config, index, error))
        return NULL;
    return json_pack("{s:s, s:I}", "found", "index", "tensors",
                     (json_int_t)g_hash_table_size(index));
}

typedef struct Inspect {
    PlanAsk ask;
    guint64 memory; /* bytes of a rank; 0: not said */
    MemoryPlan plans[PLAN_FORMATS];
} Inspect;

static gboolean make_plans(Cli *cli, const ModelConfig *config, Inspect *inspect, GError **error)
{
    PlanAsk *ask = &inspect->ask;
    const struct {
        const char *name;
        guint32 *to;
    } layout[] = {{"tp", &ask->layout.tp},
                  {"ep", &ask->layout.ep},
                  {"dp", &ask->layout.dp},
                  {"sp", &ask->layout.sp}};
    guint64 batch = 1, gb = 0;
    ask->context = 4096;
    if (!cli_number(cli, "context", 0, G_MAXUINT64, &ask->context, error) ||
        !cli_number(cli, "batch", 0, G_MAXUINT32, &batch, error) ||
        !cli_number(cli, "memory", 0, G_MAXUINT32, &gb, error))
        return FALSE;
    ask->batch = (guint32)batch;
    for (guint i = 0; i < G_N_ELEMENTS(layout); i++) {
        guint64 ranks = 0;
        if (!cli_number(cli, layout[i].name, 0, G_MAXUINT32, &ranks, error))
            return FALSE;
        *layout[i].to = (guint32)ranks;
    }
    if (!layout_check(config, &ask->layout, &ask->layout, error))
        return FALSE;
    inspect->memory = gb * 1000000000;
    for (int f = 0; f < PLAN_FORMATS; f++) {
        ask->format = (PlanFormat)f;
        if (!plan_memory(config, ask, &inspect->plans[f], error))
            return FALSE;
    }
    return TRUE;
}

/* Sequences of the asked length for which a rank has memory. */
static guint64 sequences_that_fit(const Inspect *inspect, const MemoryPlan *plan)
{
    return inspect->memory > plan->weights_sum && plan->sequence > 0
               ? (inspect->memory - plan->weights_sum) / plan->sequence
               : 0;
}

static json_t *plan_json(const Inspect *inspect, const MemoryPlan *plan)
{
    json_t *weights = json_object();
    for (int c = 0; c < CLASS_COUNT; c++)
        json_object_set_new(weights, tensors_class_name((TensorClass)c),
                            json_integer((json_int_t)plan->weights[c]));
    json_t *value = json_pack("{s:o, s:I, s:I, s:I, s:I, s:I}", "weights", weights, "weights_sum",
                              (json_int_t)plan->weights_sum, "states", (json_int_t)plan->state,
                              "open_chunks", (json_int_t)plan->open, "kv_cache",
                              (json_int_t)plan->kv, "total", (json_int_t)plan->total);
    if (inspect->memory > 0)
        json_object_set_new(value, "sequences_that_fit",
                            json_integer((json_int_t)sequences_that_fit(inspect, plan)));
    return value;
}

static void print_inspect_json(const ModelConfig *config, const Inspect *inspect,
                               json_t *checkpoint)
{
    const Layout *layout = &inspect->ask.layout;
    json_t *formats = json_object();
    for (int f = 0; f < PLAN_FORMATS; f++)
        json_object_set_new(formats, plan_format_name((PlanFormat)f),
                            plan_json(inspect, &inspect->plans[f]));
    g_autoptr(json_t) value = json_pack(
        "{s:o, s:I, s:I, s:O, s:{s:I, s:I, s:I, s:{s:I, s:I, s:I, s:I}, s:o}}", "config",
        model_config_json(config), "parameters", (json_int_t)tensors_params(config),
        "parameters_active", (json_int_t)tensors_params_active(config), "checkpoint", checkpoint,
        "memory_per_rank", "context", (json_int_t)inspect->ask.context, "batch",
        (json_int_t)inspect->ask.batch, "ranks", (json_int_t)layout_ranks(layout), "layout", "tp",
        (json_int_t)layout->tp, "ep", (json_int_t)layout->ep, "dp", (json_int_t)layout->dp, "sp",
        (json_int_t)layout->sp, "formats", formats);
    cli_print_json(value);
}

/* One row of bytes for every format. `field`: its place in MemoryPlan. */
static void add_bytes_row(CliTable *table, const char *what, const Inspect *inspect, gsize field)
{
    char *cells[PLAN_FORMATS];
    for (int f = 0; f < PLAN_FORMATS; f++)
        cells[f] = bytes_text(*(const guint64 *)((const guint8 *)&inspect->plans[f] + field));
    cli_table_add(table, what, cells[PLAN_F32], cells[PLAN_BF16], cells[PLAN_FP8], cells[PLAN_INT4],
                  NULL);
    for (int f = 0; f < PLAN_FORMATS; f++)
        g_free(cells[f]);
}

static void add_fit_row(CliTable *table, const Inspect *inspect)
{
    char *cells[PLAN_FORMATS];
    for (int f = 0; f < PLAN_FORMATS; f++)
        cells[f] = inspect->plans[f].weights_sum > inspect->memory
                       ? g_strdup("weights do not fit")
                       : grouped(sequences_that_fit(inspect, &inspect->plans[f]));
    cli_table_add(table, "sequences that fit", cells[PLAN_F32], cells[PLAN_BF16], cells[PLAN_FP8],
                  cells[PLAN_INT4], NULL);
    for (int f = 0; f < PLAN_FORMATS; f++)
        g_free(cells[f]);
}

static void print_plans(Cli *cli, const Inspect *inspect)
{
    static const struct {
        const char *what;
        gsize field;
    } rows[] = {{"weights", G_STRUCT_OFFSET(MemoryPlan, weights_sum)},
                {"lightning states", G_STRUCT_OFFSET(MemoryPlan, state)},
                {"open chunks", G_STRUCT_OFFSET(MemoryPlan, open)},
                {"kv cache", G_STRUCT_OFFSET(MemoryPlan, kv)},
                {"total", G_STRUCT_OFFSET(MemoryPlan, total)}};
    CliTable *table =
        cli_table_new(cli, (const char *[]){"memory", "f32", "bf16", "fp8", "int4", NULL});
    for (guint c = 0; c < CLASS_COUNT; c++) {
        g_autofree char *what = g_strdup_printf("  %s", tensors_class_name((TensorClass)c));
        add_bytes_row(table, what, inspect,
                      G_STRUCT_OFFSET(MemoryPlan, weights) + c * sizeof(guint64));
    }
    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        add_bytes_row(table, rows[i].what, inspect, rows[i].field);
    if (inspect->memory > 0)
        add_fit_row(table, inspect);
    cli_table_end(table);
}

static void print_checkpoint(const json_t *checkpoint)
{
    const char *found = cli_json_str(checkpoint, "found");
    g_autofree char *tensors = grouped((guint64)cli_json_int(checkpoint, "tensors"));
    g_autofree char *bytes = bytes_text((guint64)cli_json_int(checkpoint, "bytes"));
    if (strcmp(found, "weights") == 0)
        printf("checkpoint   %s tensors, %s, in files: %d; names and shapes are the config's\n",
               tensors, bytes, (int)cli_json_int(checkpoint, "files"));
    else if (strcmp(found, "index") == 0)
        printf("checkpoint   an index of %s tensors: names are the config's; files are missing\n",
               tensors);
    else
        printf("checkpoint   none here\n");
}

static void print_inspect(Cli *cli, const ModelConfig *c, const Inspect *inspect,
                          const json_t *checkpoint)
{
    g_autofree char *params = grouped(tensors_params(c));
    g_autofree char *active = grouped(tensors_params_active(c));
    g_autofree char *context = grouped(inspect->ask.context);
    const Layout l = inspect->ask.layout;
    printf("layers       %u: %u lightning, %u softmax; chunk %u\n", c->layers, c->lightning_layers,
           c->softmax_layers, c->chunk);
    printf("sizes        hidden %u, %u heads of %u (%u rotated), %u kv heads\n", c->hidden,
           c->heads, c->head_dim, c->rotary_dim, c->kv_heads);
    printf("experts      %u of width %u, %u per token\n", c->experts, c->ffn, c->experts_per_token);
    printf("vocabulary   %u, valid below %u\n", c->vocab, c->vocab_valid);
    printf("parameters   %s\n", params);
    printf("active       %s per token, without embedding, head and norms\n", active);
    print_checkpoint(checkpoint);
    printf(
        "memory       per rank of %u (tp %u, ep %u, dp %u, sp %u); sequences: %u of %s tokens\n\n",
        layout_ranks(&l), l.tp, l.ep, l.dp, l.sp, inspect->ask.batch, context);
    print_plans(cli, inspect);
}

int cli_policy_inspect(Cli *cli)
{
    GError *error = NULL;
    ModelConfig config;
    Inspect inspect = {0};
    if (!model_config_read(cli_arg(cli, 0), &config, &error) ||
        !make_plans(cli, &config, &inspect, &error))
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) checkpoint = checkpoint_json(&config, cli_arg(cli, 0), &error);
    if (checkpoint == NULL)
        return cli_error(cli, error, NULL);
    if (cli->json)
        print_inspect_json(&config, &inspect, checkpoint);
    else
        print_inspect(cli, &config, &inspect, checkpoint);
    return CLI_OK;
}

/* --- verify */

int cli_policy_verify(Cli *cli)
{
    GError *error = NULL;
    g_auto(VerifyReport) report = {0};
    if (!verify_checkpoint(cli_arg(cli, 0), &report, &error))
        return cli_error(cli, error, NULL);
    gboolean good = report.not_finite == 0 && report.padding_filled == 0;
    g_autoptr(json_t) value = json_pack(
        "{s:b, s:I, s:I, s:I, s:I, s:I, s:s?, s:s}", "good", good, "tensors",
        (json_int_t)report.tensors, "parameters", (json_int_t)report.params, "bytes",
        (json_int_t)report.bytes, "not_finite", (json_int_t)report.not_finite, "padding_filled",
        (json_int_t)report.padding_filled, "first_bad", report.first_bad, "digest", report.digest);
    if (cli->json)
        cli_print_json(value);
    else
        puts(report.digest);
    if (!good)
        cli_say(cli,
                "%" G_GUINT64_FORMAT " values are not finite, %" G_GUINT64_FORMAT
                " in padded rows are not zero, first in %s",
                report.not_finite, report.padding_filled, report.first_bad);
    return good ? CLI_OK : CLI_FAILED;
}

/* --- quantize */

/* A tokenizer goes along, if there is one. */
static gboolean take_tokenizer(const char *from, const char *to, GError **error)
{
    g_autoptr(GError) why = NULL;
    g_autoptr(Tokenizer) tokenizer = tokenizer_load(from, &why);
    if (tokenizer != NULL)
        return tokenizer_save(tokenizer, to, error);
    if (g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND))
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&why));
    return FALSE;
}

int cli_policy_quantize(Cli *cli)
{
    GError *error = NULL;
    WeightFormat format;
    const char *from = cli_arg(cli, 0), *out = cli_option(cli, "out");
    if (out == NULL || !cli_has(cli, "weights"))
        return cli_usage(cli, "policy quantize needs --weights int8, fp8 or int4, and --out DIR");
    if (!policy_weights_wanted(cli, &format, &error))
        return cli_error(cli, error, NULL);
    if (format == WEIGHT_REAL || format == WEIGHT_BF16)
        return cli_usage(cli, "--weights: %s is not int8, fp8 or int4", weight_format_name(format));
    g_autoptr(Weights) weights = weights_load(from, TENSOR_F32, &error);
    if (weights == NULL || !coded_save(weights, out, format, &error) ||
        !take_tokenizer(from, out, &error))
        return cli_error(cli, error, NULL);
    puts(out);
    return CLI_OK;
}

/* --- flops */

typedef enum FlopsCount {
    FLOPS_PAPER = 0,
    FLOPS_EXACT,
    FLOPS_ABSORBED, /* exact, latent attention as decoded */
    FLOPS_COUNTS,
} FlopsCount;

static const char *const flops_counts[FLOPS_COUNTS] = {"paper", "exact", "absorbed"};
static const guint flops_lengths[] = {8, 16, 32, 40, 64, 80, 100, 128, 256, 512, 1024};

static double flops_of(const FlopsModel *model, FlopsCount count, double length)
{
    double pair =
        count == FLOPS_ABSORBED && model->pair_absorbed > 0 ? model->pair_absorbed : model->pair;
    return count == FLOPS_PAPER ? flops_paper(model, length)
                                : flops_exact(model->token, pair, length);
}

static void print_flops_line(Cli *cli, CliTable *table, FlopsCount count, guint k,
                             const ModelConfig *config)
{
    double length = k * TOKENS_PER_K;
    double m1 = flops_of(flops_model("MiniMax-M1"), count, length);
    double r1 = flops_of(flops_model("DeepSeek-R1"), count, length);
    double q3 = flops_of(flops_model("Qwen3-235B-A22B"), count, length);
    double own = config == NULL ? 0 : flops_exact(flops_token(config), flops_pair(config), length);
    if (cli->json) {
        g_autoptr(json_t) value =
            json_pack("{s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "count", flops_counts[count],
                      "tokens", (int)length, "MiniMax-M1", m1, "DeepSeek-R1", r1, "Qwen3-235B-A22B",
                      q3, "m1_to_r1", m1 / r1, "m1_to_qwen3", m1 / q3, "config", own);
        if (config == NULL || count != FLOPS_EXACT)
            json_object_del(value, "config");
        cli_print_json(value);
        return;
    }
    const double cells[] = {m1, r1, q3, m1 / r1, m1 / q3, own};
    char *texts[G_N_ELEMENTS(cells)];
    g_autofree char *tokens = g_strdup_printf("%uK", k);
    for (guint i = 0; i < G_N_ELEMENTS(cells); i++)
        texts[i] = g_strdup_printf(i == 3 || i == 4 ? "%.4f" : "%.3e", cells[i]);
    cli_table_add(table, flops_counts[count], tokens, texts[0], texts[1], texts[2], texts[3],
                  texts[4], config != NULL && count == FLOPS_EXACT ? texts[5] : "", NULL);
    for (guint i = 0; i < G_N_ELEMENTS(cells); i++)
        g_free(texts[i]);
}

int cli_policy_flops(Cli *cli)
{
    GError *error = NULL;
    ModelConfig config;
    const char *path = cli_arg(cli, 0);
    if (path != NULL && !model_config_read(path, &config, &error))
        return cli_error(cli, error, NULL);
    CliTable *table =
        cli->json
            ? NULL
            : cli_table_new(cli, (const char *[]){"count", "tokens", "MiniMax-M1", "DeepSeek-R1",
                                                  "Qwen3-235B-A22B", "M1/R1", "M1/Qwen3",
                                                  path != NULL ? path : "", NULL});
    for (int count = 0; count < FLOPS_COUNTS; count++)
        for (guint i = 0; i < G_N_ELEMENTS(flops_lengths); i++)
            print_flops_line(cli, table, (FlopsCount)count, flops_lengths[i],
                             path != NULL ? &config : NULL);
    if (table != NULL)
        cli_table_end(table);
    return CLI_OK;
}
