/*
 * A run's metrics: one JSON line per step and phase, the same numbers as TensorBoard events.
 *
 * 1. A line is written by one call, whole; after a crash the file is cut back to what the
 *    checkpoint knows, so no step is there twice.
 * 2. Numbers that are not finite are null in JSON.
 */
#include "env/train_log.h"

#include "env/tensorboard.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define METRICS_FILE      "metrics.jsonl"
#define METRICS_BYTES_MAX (1u << 30)
#define METRICS_MAX       256u

struct TrainLog {
    int fd;
    TensorBoard *board;
    char *names[METRICS_MAX];
    double values[METRICS_MAX];
    guint n;
    gint64 start_us;
    gint64 eval_last; /* step of the last evaluation, -1: none */
    guint talk;       /* warm-up steps from line to line; 0: silent */
};

GPtrArray *train_log_read(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, METRICS_FILE, NULL);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)json_decref);
    g_autoptr(GBytes) bytes = file_read(path, METRICS_BYTES_MAX, error);
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!bytes)
        return NULL;
    text = g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    lines = g_strsplit(text, "\n", -1);
    for (guint i = 0; lines[i]; i++) {
        json_t *row = *lines[i] ? json_parse(lines[i], strlen(lines[i]), NULL) : NULL;

        if (json_is_object(row)) /* a torn last line is no row */
            g_ptr_array_add(rows, row);
        else
            json_decref(row);
    }
    return g_steal_pointer(&rows);
}

/* Keeps the rows up to step_last. */
static gboolean cut_back(TrainLog *log, const char *dir, gint64 step_last, GError **error)
{
    g_autofree char *path = g_build_filename(dir, METRICS_FILE, NULL);
    g_autoptr(GString) kept = g_string_new(NULL);
    g_autoptr(GPtrArray) rows = NULL;

    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return TRUE;
    if (!(rows = train_log_read(dir, error)))
        return FALSE;
    for (guint i = 0; i < rows->len; i++) {
        g_autofree char *line = json_print(rows->pdata[i]);
        gint64 step = json_integer_value(json_object_get(rows->pdata[i], "step"));
        const char *phase = json_string_value(json_object_get(rows->pdata[i], "phase"));

        if (step > step_last)
            continue;
        g_string_append_printf(kept, "%s\n", line);
        if (!g_strcmp0(phase, "eval"))
            log->eval_last = step;
    }
    return file_write_atomic(path, kept->str, kept->len, error);
}

TrainLog *train_log_open(const char *dir, gint64 step_last, GError **error)
{
    g_autofree char *path = g_build_filename(dir, METRICS_FILE, NULL);
    g_autofree char *board = g_build_filename(dir, "tensorboard", NULL);
    g_autoptr(TrainLog) log = g_new0(TrainLog, 1);

    log->fd = -1;
    log->eval_last = -1;
    log->start_us = g_get_monotonic_time();
    if (!cut_back(log, dir, step_last, error) || !(log->board = tensorboard_open(board, error)))
        return NULL;
    log->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log->fd < 0) {
        error_set_errno(error, errno, "%s", path);
        return NULL;
    }
    return g_steal_pointer(&log);
}

static void forget(TrainLog *log)
{
    while (log->n > 0)
        g_free(log->names[--log->n]);
}

void train_log_close(TrainLog *log)
{
    if (!log)
        return;
    forget(log);
    tensorboard_close(log->board);
    if (log->fd >= 0)
        close(log->fd);
    g_free(log);
}

static int find(const TrainLog *log, const char *name)
{
    for (guint i = 0; i < log->n; i++)
        if (!strcmp(log->names[i], name))
            return (int)i;
    return -1;
}

void train_log_put(TrainLog *log, const char *name, double value)
{
    int at = find(log, name);

    if (at < 0) {
        g_assert(log->n < METRICS_MAX);
        at = (int)log->n++;
        log->names[at] = g_strdup(name);
    }
    log->values[at] = value;
}

gint64 train_log_eval_last(const TrainLog *log)
{
    return log->eval_last;
}

double train_log_get(const TrainLog *log, const char *name)
{
    int at = find(log, name);

    return at < 0 ? (double)NAN : log->values[at];
}

void train_log_talk(TrainLog *log, guint warmup_every)
{
    log->talk = warmup_every;
}

void train_log_say(const TrainLog *log, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (log->talk == 0)
        return;
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_printerr("%s\n", text);
}

/* What a line for people shows of each phase; evaluations are shown whole. */
static const struct {
    const char *phase, *name, *label;
    int digits;
} columns[] = {
    {"warmup", "loss/total", "loss", 3},
    {"warmup", "optim/grad_norm", "grad", 2},
    {"warmup", "time/update_s", "s", 2},
    {"rl", "reward/mean", "reward", 3},
    {"rl", "reward/resolved_first_turn", "first", 3},
    {"rl", "signal/solve_none", "none", 2},
    {"rl", "signal/solve_all", "all", 2},
    {"rl", "policy/entropy", "entropy", 3},
    {"rl", "policy/is_clipped_frac", "clipped", 3},
    {"rl", "policy/logp_diff_max", "mismatch", 6},
    {"rl", "optim/grad_norm", "grad", 2},
    {"rl", "time/rollout_s", "rollout", 2},
    {"rl", "time/grade_s", "grade", 2},
    {"rl", "time/update_s", "update", 2},
};

/* "rl  12  reward 0.312  first 0.25 ..."; numbers that are not there are left out. */
char *train_log_line(const json_t *row)
{
    const char *phase = json_string_value(json_object_get(row, "phase")), *name;
    gint64 step = json_integer_value(json_object_get(row, "step"));
    GString *line = g_string_new(NULL);
    json_t *value;

    g_string_append_printf(line, "%-6s %5" G_GINT64_FORMAT, phase ? phase : "", step);
    for (guint i = 0; i < G_N_ELEMENTS(columns); i++) {
        const json_t *number = json_object_get(row, columns[i].name);

        if (g_strcmp0(columns[i].phase, phase) == 0 && json_is_number(number))
            g_string_append_printf(line, "  %s %.*f", columns[i].label, columns[i].digits,
                                   json_number_value(number));
    }
    json_object_foreach((json_t *)(gsize)row, name,
                        value) if (g_str_has_prefix(name, "eval/") && json_is_number(value))
        g_string_append_printf(line, "  %s %.3f", name + 5, json_number_value(value));
    return g_string_free(line, FALSE);
}

static void talk(const TrainLog *log, const json_t *row)
{
    const char *phase = json_string_value(json_object_get(row, "phase"));
    gint64 step = json_integer_value(json_object_get(row, "step"));
    g_autofree char *line = train_log_line(row);

    if (log->talk > 0 && (strcmp(phase, "warmup") != 0 || step % log->talk == 0))
        g_printerr("%s\n", line);
}

gboolean train_log_end(TrainLog *log, const char *phase, gint64 step, GError **error)
{
    double wall = (double)g_get_real_time() / 1e6;
    g_autoptr(json_t) row = NULL;
    g_autofree char *line = NULL, *ended = NULL;
    gboolean ok;

    if (log->n == 0)
        return TRUE;
    row = json_pack("{s:s, s:I, s:f, s:f}", "phase", phase, "step", (json_int_t)step, "time", wall,
                    "elapsed_s", (double)(g_get_monotonic_time() - log->start_us) / 1e6);
    for (guint i = 0; i < log->n; i++)
        json_object_set_new(row, log->names[i],
                            isfinite(log->values[i]) ? json_real(log->values[i]) : json_null());
    line = json_print(row);
    ended = g_strconcat(line, "\n", NULL);
    ok = fd_write_all(log->fd, ended, strlen(ended), error) &&
         tensorboard_add(log->board, step, wall, (const char *const *)log->names, log->values,
                         log->n, error);
    talk(log, row);
    forget(log);
    return ok;
}
