/*
 * assay train watch: a run under way, drawn on the terminal until it ends or q is pressed.
 *
 * 1. Only the run's own files are read: watching costs the run nothing, and any number may watch.
 * 2. The terminal is given back as it was, after q, Ctrl-C and an error alike.
 * 3. Where the output is no terminal every new row becomes a line, as the run itself prints them.
 */
#include "env/cli.h"

#include "env/train_curve.h"
#include "env/train_log.h"

#include <math.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define TURN_MS     1000
#define CHART_LINES 6u
#define LINES_LAST  6u  /* of the newest rows */
#define QUIET_S     600 /* without a row: the run is not under way */

typedef struct Watch {
    Cli *cli;
    const char *dir;
    GPtrArray *rows;
    gint64 warmup, updates; /* what the run's configuration says */
    guint width;
} Watch;

static void watch_clear(Watch *watch)
{
    g_clear_pointer(&watch->rows, g_ptr_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Watch, watch_clear)

static gint64 number_of(GKeyFile *config, const char *group, const char *key)
{
    g_autofree char *text = g_key_file_get_string(config, group, key, NULL);

    return text ? g_ascii_strtoll(text, NULL, 10) : 0;
}

static gboolean watch_read(Watch *watch, GError **error)
{
    g_autofree char *path = g_build_filename(watch->dir, "config.conf", NULL);
    g_autoptr(GKeyFile) config = g_key_file_new();
    GPtrArray *rows = train_log_read(watch->dir, error);

    if (!rows)
        return FALSE;
    g_clear_pointer(&watch->rows, g_ptr_array_unref);
    watch->rows = rows;
    if (g_key_file_load_from_file(config, path, G_KEY_FILE_NONE, NULL)) {
        watch->warmup = number_of(config, "warmup", "updates");
        watch->updates = number_of(config, "run", "updates");
    }
    return TRUE;
}

static const json_t *row_at(const Watch *watch, guint from_end)
{
    return from_end < watch->rows->len ? watch->rows->pdata[watch->rows->len - 1 - from_end] : NULL;
}

static gint64 step_now(const Watch *watch)
{
    return json_integer_value(json_object_get(row_at(watch, 0), "step"));
}

static double time_of(const json_t *row)
{
    return json_number_value(json_object_get(row, "time"));
}

static gboolean has_ended(const Watch *watch)
{
    return watch->warmup + watch->updates > 0 && step_now(watch) >= watch->warmup + watch->updates;
}

/* ---- parts of the screen ---- */

static char *span_text(double seconds)
{
    int s = (int)seconds;

    if (s >= 3600)
        return g_strdup_printf("%dh %02dm", s / 3600, s / 60 % 60);
    return s >= 60 ? g_strdup_printf("%dm %02ds", s / 60, s % 60) : g_strdup_printf("%ds", s);
}

/* Seconds of a step, by the newest rows of the phase that is under way. */
static double pace_of(const Watch *watch)
{
    const json_t *last = row_at(watch, 0), *row = last;
    const char *phase = json_string_value(json_object_get(last, "phase"));
    gint64 step = step_now(watch), first = step;

    for (guint i = 1; i < 50 && row_at(watch, i); i++) {
        const char *of = json_string_value(json_object_get(row_at(watch, i), "phase"));

        if (g_strcmp0(of, phase) != 0 && g_strcmp0(of, "eval") != 0)
            break;
        row = row_at(watch, i);
        first = json_integer_value(json_object_get(row, "step"));
    }
    return step > first ? (time_of(last) - time_of(row)) / (double)(step - first) : 0;
}

static void draw_head(const Watch *watch, GString *out)
{
    gint64 step = step_now(watch), all = watch->warmup + watch->updates;
    gboolean warm = step <= watch->warmup && watch->warmup > 0;
    double quiet = (double)g_get_real_time() / 1e6 - time_of(row_at(watch, 0));
    double left = pace_of(watch) * (double)((warm ? watch->warmup : all) - step);
    g_autofree char *name = g_path_get_basename(watch->dir), *eta = span_text(left);
    g_autofree char *still = span_text(quiet);
    const char *state = has_ended(watch) ? "ended" : quiet > QUIET_S ? "silent" : "running";

    g_string_append_printf(out, "%s   %s   ", name, state);
    if (warm)
        g_string_append_printf(out, "warm-up %" G_GINT64_FORMAT "/%" G_GINT64_FORMAT, step,
                               watch->warmup);
    else
        g_string_append_printf(out, "update %" G_GINT64_FORMAT "/%" G_GINT64_FORMAT,
                               step - watch->warmup, watch->updates);
    if (strcmp(state, "running") == 0 && left > 0)
        g_string_append_printf(out, ", %s left", eta);
    g_string_append_printf(out, "   last row %s ago\n\n", still);
}

/* The metric that is drawn large: the first of these that there is. */
static const char *const large[] = {"reward/mean", "loss/total"};

static void draw_chart(const Watch *watch, GString *out)
{
    for (guint i = 0; i < G_N_ELEMENTS(large); i++) {
        g_autoptr(GArray) series = train_series(watch->rows, large[i]);
        g_autofree char *chart = train_chart(series, watch->width - 12, CHART_LINES);

        if (series->len == 0)
            continue;
        g_string_append_printf(out, "  %s  %.4g\n%s\n", large[i],
                               g_array_index(series, double, series->len - 1), chart);
        return;
    }
}

/* Curves of one line; whatever evaluations measured comes after them. */
static const char *const small[] = {
    "reward/resolved_first_turn", "policy/entropy",     "policy/logp_diff_max", "optim/grad_norm",
    "signal/zero_std_groups",     "mask/infra_frac",    "canary/reward",        "loss/total",
    "length/completion_mean",     "perf/episodes_per_s"};

static void draw_curve(const Watch *watch, const char *name, GString *out)
{
    g_autoptr(GArray) series = train_series(watch->rows, name);
    g_autofree char *curve = train_curve(series, MIN(watch->width - 50, 60));

    if (series->len > 0)
        g_string_append_printf(out, "  %-30s %9.4g  %s\n", name,
                               g_array_index(series, double, series->len - 1), curve);
}

static void draw_curves(const Watch *watch, GString *out)
{
    const json_t *eval = NULL;
    const char *name;
    json_t *value;

    for (guint i = 0; i < G_N_ELEMENTS(small); i++)
        draw_curve(watch, small[i], out);
    for (guint i = 0; i < watch->rows->len && !eval; i++) {
        const json_t *row = row_at(watch, i);

        if (!g_strcmp0(json_string_value(json_object_get(row, "phase")), "eval"))
            eval = row;
    }
    json_object_foreach((json_t *)(gsize)eval, name,
                        value) if (g_str_has_prefix(name, "eval/") && strstr(name, "pass@"))
        draw_curve(watch, name, out);
}

/* Where the time of the last update went. */
static void draw_times(const Watch *watch, GString *out)
{
    static const char *const names[] = {"time/rollout_s", "time/grade_s", "time/update_s"};
    static const char *const labels[] = {"rollout", "grade", "update"};
    double seconds[G_N_ELEMENTS(names)], sum = 0;

    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        seconds[i] = train_series_last(watch->rows, names[i]);
        sum += isnan(seconds[i]) ? 0 : seconds[i];
    }
    g_string_append(out, "\n ");
    for (guint i = 0; i < G_N_ELEMENTS(names) && sum > 0; i++) {
        guint width = isnan(seconds[i]) ? 0 : (guint)(24 * seconds[i] / sum + 0.5);

        if (isnan(seconds[i]))
            continue;
        g_string_append_printf(out, " %s %.2f s ", labels[i], seconds[i]);
        for (guint w = 0; w < width; w++)
            g_string_append(out, "█");
        g_string_append(out, "  ");
    }
    g_string_append(out, "\n\n");
}

static void draw_rows(const Watch *watch, GString *out)
{
    for (guint i = MIN(LINES_LAST, watch->rows->len); i > 0; i--) {
        const json_t *row = row_at(watch, i - 1);
        g_autoptr(GDateTime) at = g_date_time_new_from_unix_local((gint64)time_of(row));
        g_autofree char *clock = g_date_time_format(at, "%H:%M:%S");
        g_autofree char *line = train_log_line(row);

        g_string_append_printf(out, "  %s  %.*s\n", clock, (int)watch->width - 12, line);
    }
}

static void draw(const Watch *watch)
{
    g_autoptr(GString) out = g_string_new("\033[H");
    g_auto(GStrv) lines = NULL;
    g_autoptr(GString) text = g_string_new(NULL);

    draw_head(watch, text);
    draw_chart(watch, text);
    draw_curves(watch, text);
    draw_times(watch, text);
    draw_rows(watch, text);
    g_string_append(text, "q quit");
    lines = g_strsplit(text->str, "\n", -1);
    for (guint i = 0; lines[i]; i++)
        g_string_append_printf(out, "%s\033[K%s", lines[i], lines[i + 1] ? "\r\n" : "");
    g_string_append(out, "\033[J");
    fwrite(out->str, 1, out->len, stdout);
    fflush(stdout);
}

/* ---- the loop ---- */

static guint terminal_width(void)
{
    struct winsize size = {.ws_col = 0};

    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    return CLAMP(size.ws_col, 60, 160);
}

/* Waits a turn; TRUE: q was pressed, or Ctrl-C. */
static gboolean quit_asked(void)
{
    struct pollfd keys = {.fd = STDIN_FILENO, .events = POLLIN};
    char key = 0;

    if (poll(&keys, 1, TURN_MS) > 0 && read(STDIN_FILENO, &key, 1) == 1 && key == 'q')
        return TRUE;
    return cli_interrupts() > 0;
}

static int watch_on_terminal(Watch *watch, GError **error)
{
    struct termios before, raw;
    gboolean keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &before) == 0, ok = TRUE;

    if (keys) {
        raw = before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l", stdout); /* another screen, no cursor */
    do {
        watch->width = terminal_width();
        if ((ok = watch_read(watch, error)) && watch->rows->len > 0)
            draw(watch);
    } while (ok && !quit_asked());
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
    return ok;
}

static gboolean watch_as_lines(Watch *watch, GError **error)
{
    guint said = 0;

    while (cli_interrupts() == 0) {
        if (!watch_read(watch, error))
            return FALSE;
        for (; said < watch->rows->len; said++) {
            g_autofree char *line = train_log_line(watch->rows->pdata[said]);

            if (watch->cli->json)
                cli_print_json(watch->rows->pdata[said]);
            else
                printf("%s\n", line);
        }
        fflush(stdout);
        if (has_ended(watch))
            return TRUE;
        g_usleep(TURN_MS * 1000);
    }
    return TRUE;
}

int cli_train_watch(Cli *cli)
{
    g_auto(Watch) watch = {.cli = cli, .dir = cli_arg(cli, 0)};
    gboolean drawn = cli->out_tty && !cli->json;
    GError *error = NULL;

    cli_interrupts_watch();
    if (drawn ? !watch_on_terminal(&watch, &error) : !watch_as_lines(&watch, &error))
        return cli_error(cli, error, "assay train ls");
    return CLI_OK;
}
