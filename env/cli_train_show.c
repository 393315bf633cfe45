/*
 * assay train ls, show, compare: what runs said of themselves.
 *
 * 1. Only a run's own files are read: a run under way is shown as it stands.
 * 2. --json gives the numbers as they were logged, one object per line.
 */
#include "env/cli.h"

#include "env/train_config.h"
#include "env/train_log.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define CURVE_WIDTH 48u

/* ---- a run's numbers ---- */

/* The values of a metric in the order of steps. */
static GArray *series_of(const GPtrArray *rows, const char *name)
{
    GArray *series = g_array_new(FALSE, FALSE, sizeof(double));

    for (guint i = 0; i < rows->len; i++) {
        const json_t *value = json_object_get(rows->pdata[i], name);

        if (json_is_number(value)) {
            double number = json_number_value(value);

            g_array_append_val(series, number);
        }
    }
    return series;
}

static double value_at(const GArray *series, guint i)
{
    return g_array_index(series, double, i);
}

/* Means of equal parts of the series, as eight heights. */
static char *curve_of(const GArray *series)
{
    static const char *const heights[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    g_autoptr(GString) curve = g_string_new(NULL);
    guint width = MIN(series->len, CURVE_WIDTH);
    double least = INFINITY, most = -INFINITY;

    for (guint i = 0; i < series->len; i++) {
        least = MIN(least, value_at(series, i));
        most = MAX(most, value_at(series, i));
    }
    for (guint w = 0; w < width; w++) {
        guint from = series->len * w / width, to = series->len * (w + 1) / width;
        double sum = 0;

        for (guint i = from; i < to; i++)
            sum += value_at(series, i);
        sum = most > least ? (sum / (to - from) - least) / (most - least) : 0.5;
        g_string_append(curve, heights[(guint)CLAMP(sum * 8, 0, 7)]);
    }
    return g_string_free(g_steal_pointer(&curve), FALSE);
}

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

/* The last value; NAN: there is none. */
static double last_of(const GPtrArray *rows, const char *name)
{
    g_autoptr(GArray) series = series_of(rows, name);

    return series->len ? value_at(series, series->len - 1) : (double)NAN;
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
        g_autoptr(GArray) series = series_of(rows, names->pdata[i]);
        double least = INFINITY, most = -INFINITY;
        g_autofree char *curve = curve_of(series), *first = NULL, *last = NULL, *low = NULL;
        g_autofree char *high = NULL;

        if (series->len == 0 || (only && !strstr(names->pdata[i], only)))
            continue;
        for (guint j = 0; j < series->len; j++) {
            least = MIN(least, value_at(series, j));
            most = MAX(most, value_at(series, j));
        }
        first = number_text(value_at(series, 0));
        last = number_text(value_at(series, series->len - 1));
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
    reward = number_text(last_of(rows, "reward/mean"));
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
        double x = last_of(a, names->pdata[i]), y = last_of(b, names->pdata[i]);
        g_autofree char *first = number_text(x), *second = number_text(y);
        g_autofree char *difference = number_text(y - x);

        cli_table_add(table, names->pdata[i], first, second, difference, NULL);
    }
    cli_table_end(table);
    return CLI_OK;
}
