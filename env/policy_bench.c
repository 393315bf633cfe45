/*
 * assay policy bench: speeds of the CPU path as shares of what this machine can do.
 */
#include "env/policy_runtime.h"

#include "policy/bench.h"
#include "policy/init.h"

typedef struct {
    Cli *cli;
    CliTable *table; /* NULL: JSON lines */
} Printer;

static void print_row(const BenchRow *row, gpointer user)
{
    Printer *p = user;

    if (p->table) {
        g_autofree char *value = g_strdup_printf("%.4g", row->value);
        g_autofree char *bound = row->bound > 0 ? g_strdup_printf("%.4g", row->bound) : NULL;
        g_autofree char *share =
            row->bound > 0 ? g_strdup_printf("%.2f", row->value / row->bound) : NULL;

        cli_table_add(p->table, row->group, row->what, value, row->unit, bound ? bound : "-",
                      share ? share : "-", NULL);
        cli_say(p->cli, "%s: %s: %s %s", row->group, row->what, value, row->unit);
    } else {
        g_autoptr(json_t) line = json_pack("{s:s, s:s, s:f, s:s}", "group", row->group, "what",
                                           row->what, "value", row->value, "unit", row->unit);

        if (row->bound > 0) {
            json_object_set_new(line, "bound", json_real(row->bound));
            json_object_set_new(line, "share", json_real(row->value / row->bound));
        }
        cli_print_json(line);
    }
}

int cli_policy_bench(Cli *cli)
{
    GError *error = NULL;
    const char *preset = cli_option(cli, "preset");
    Printer printer = {.cli = cli};
    guint64 rounds = 9, context = 1 << 20;
    WeightFormat format;
    ModelConfig config;

    if (!policy_weights_wanted(cli, &format, &error) ||
        !cli_number(cli, "rounds", 1, 99, &rounds, &error) ||
        !cli_number(cli, "context", 1, 1 << 24, &context, &error) ||
        !init_preset(preset ? preset : "t14", &config, &error))
        return cli_error(cli, error, NULL);
    cli_say(cli, "%s, %s, %s weights", preset ? preset : "t14", ops_cpu()->name,
            weight_format_name(format));
    if (!cli->json)
        printer.table = cli_table_new(
            cli, (const char *[]){"group", "what", "value", "unit", "bound", "share", NULL});
    if (!bench_run(ops_cpu(), &config, format, (guint)rounds, (gint64)context, print_row, &printer,
                   &error))
        return cli_error(cli, error, NULL);
    if (printer.table)
        cli_table_end(printer.table);
    return CLI_OK;
}
