/*
 * assay train ls, show, compare: what runs said of themselves.
 *
 * 1. Only a run's own files are read: a run under way is shown as it stands.
 * 2. --json gives the numbers as they were logged, one object per line.
 */
#include "env/cli.h"

#include "env/train_config.h"
#include "env/train_curve.h"
#include "env/train_log.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define CURVE_WIDTH 48u

/* ---- a run's numbers ---- */

/* Names of metrics, in the order they first came. */
static GPtrArray *names_of(const GPtrArray *rows)
{
    static const char *const about[] = {"phase", "step", "time", "elapsed_s", NULL};
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    const char *name;
    json_t *value;

    for (guint i = 0; i < rows->len; i++)
        json_object_foreach(rows->pdata[i], name, value) if (!g_strv_contains(about, name) &&
                                                             !g_hash_table_contains(seen, name))
        {
            char *copy = g_strdup(name);

            g_ptr_array_add(names, copy);
            g_hash_table_add(seen, copy);
        }
    return names;
}

static char *number_text(double value)
{
    return isnan(value) ? g_strdup("-") : g_strdup_printf("%.4g", value);
}

static gint64 step_of(const GPtrArray *rows)
{
    return rows->len ? json_integer_value(json_object_get(rows->pdata[rows->len - 1], "step")) : 0;
}

/* ---- show ---- */

static void show_json(const GPtrArray *rows)
{
    for (guint i = 0; i < rows->len; i++)
        cli_print_json(rows->pdata[i]);
}

int cli_train_show(Cli *cli)
{
    static const char *const columns[] = {"metric", "first", "last", "least",
                                          "most",   "curve", NULL};
    GError *error = NULL;
    const char *only = cli_option(cli, "metric");
    g_autoptr(GPtrArray) rows = train_log_read(cli_arg(cli, 0), &error), names = NULL;
    CliTable *table;

    if (!rows)
        return cli_error(cli, error, "assay train ls");
    if (cli->json) {
        show_json(rows);
        return CLI_OK;
    }
    names = names_of(rows);
    table = cli_table_new(cli, columns);
    for (guint i = 0; i < names->len; i++) {
        g_autoptr(GArray) series = train_series(rows, names->pdata[i]);
        double least = INFINITY, most = -INFINITY;
        g_autofree char *curve = train_curve(series, CURVE_WIDTH), *first = NULL, *last = NULL,
                        *low = NULL;
        g_autofree char *high = NULL;

        if (series->len == 0 || (only && !strstr(names->pdata[i], only)))
            continue;
        for (guint j = 0; j < series->len; j++) {
            least = MIN(least, g_array_index(series, double, j));
            most = MAX(most, g_array_index(series, double, j));
        }
        first = number_text(g_array_index(series, double, 0));
        last = number_text(g_array_index(series, double, series->len - 1));
        low = number_text(least);
        high = number_text(most);
        cli_table_add(table, names->pdata[i], first, last, low, high, curve, NULL);
    }
    cli_table_end(table);
    return CLI_OK;
}

/* ---- ls ---- */

static GKeyFile *config_of(const char *dir)
{
    g_autofree char *path = g_build_filename(dir, "config.conf", NULL);
    g_autoptr(GKeyFile) file = g_key_file_new();

    return g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, NULL) ? g_steal_pointer(&file)
                                                                        : NULL;
}

static char *key_of(GKeyFile *config, const char *group, const char *key)
{
    char *value = g_key_file_get_string(config, group, key, NULL);

    return value ? value : g_strdup("-");
}

static void list_run(CliTable *table, const char *dir, const char *name)
{
    g_autoptr(GKeyFile) config = config_of(dir);
    g_autoptr(GPtrArray) rows = config ? train_log_read(dir, NULL) : NULL;
    g_autofree char *loss = NULL, *steps = NULL, *of = NULL, *warmup = NULL, *reward = NULL;

    if (!rows)
        return;
    loss = key_of(config, "loss", "name");
    of = key_of(config, "run", "updates");
    warmup = key_of(config, "warmup", "updates");
    steps = g_strdup_printf("%" G_GINT64_FORMAT " of %s+%s", step_of(rows), warmup, of);
    reward = number_text(train_series_last(rows, "reward/mean"));
    cli_table_add(table, name, loss, steps, reward, NULL);
}

int cli_train_ls(Cli *cli)
{
    static const char *const columns[] = {"run", "loss", "steps", "reward", NULL};
    const char *dir = cli_arg(cli, 0) ? cli_arg(cli, 0) : ".";
    GList *names = NULL; /* sorted */
    GError *error = NULL;
    g_autoptr(GDir) entries = g_dir_open(dir, 0, &error);
    const char *name;
    CliTable *table;

    if (!entries)
        return cli_error(cli, error, NULL);
    while ((name = g_dir_read_name(entries)))
        names = g_list_insert_sorted(names, g_strdup(name), (GCompareFunc)g_strcmp0);
    table = cli_table_new(cli, columns);
    for (const GList *at = names; at; at = at->next) {
        g_autofree char *path = g_build_filename(dir, at->data, NULL);

        list_run(table, path, at->data);
    }
    g_list_free_full(names, g_free);
    cli_table_end(table);
    return CLI_OK;
}

/* ---- compare ---- */

/* Keys in which the two differ: "optim.lr 0.0002 | 0.0001". */
static void print_differences(GKeyFile *a, GKeyFile *b)
{
    for (const TrainKey *key = train_keys; key->name; key++) {
        g_autofree char *x = train_key_value(a, key), *y = train_key_value(b, key);

        if (g_strcmp0(x, y) != 0 && strcmp(key->name, "run.dir") != 0)
            printf("%s\t%s\t%s\n", key->name, x ? x : "-", y ? y : "-");
    }
}

int cli_train_compare(Cli *cli)
{
    static const char *const columns[] = {"metric", "first run", "second run", "difference", NULL};
    GError *error = NULL;
    g_autoptr(GKeyFile) a_config = config_of(cli_arg(cli, 0)),
                        b_config = config_of(cli_arg(cli, 1));
    g_autoptr(GPtrArray) a = train_log_read(cli_arg(cli, 0), &error), names = NULL;
    g_autoptr(GPtrArray) b = a ? train_log_read(cli_arg(cli, 1), &error) : NULL;
    CliTable *table;

    if (!b)
        return cli_error(cli, error, "assay train ls");
    if (a_config && b_config)
        print_differences(a_config, b_config);
    names = names_of(a);
    table = cli_table_new(cli, columns);
    for (guint i = 0; i < names->len; i++) {
        double x = train_series_last(a, names->pdata[i]), y = train_series_last(b, names->pdata[i]);
        g_autofree char *first = number_text(x), *second = number_text(y);
        g_autofree char *difference = number_text(y - x);

        cli_table_add(table, names->pdata[i], first, second, difference, NULL);
    }
    cli_table_end(table);
    return CLI_OK;
}
