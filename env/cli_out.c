/*
 * What the CLI prints: tables, progress, errors.
 *
 * 1. Colour and redrawing only on a terminal, and never the only carrier of a meaning.
 * 2. Messages may hold what a stranger wrote: control characters are escaped before a terminal.
 * 3. A broken pipe ends the program quietly (SIGPIPE keeps its default).
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/id.h"

#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PROGRESS_BAR      24
#define PROGRESS_EVERY_NS 100000000LL
#define PROGRESS_AFTER_NS 300000000LL
#define PLAIN_EVERY_NS    30000000000LL

struct CliTable {
    Cli *cli;
    guint n_columns;
    GPtrArray *rows; /* GStrv; the first is the header */
};

static volatile sig_atomic_t interrupts;

static void on_interrupt(int number)
{
    (void)number;
    interrupts++;
}

void cli_interrupts_watch(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    interrupts = 0;
    sigaction(SIGINT, &action, NULL);
}

guint cli_interrupts(void)
{
    return (guint)interrupts;
}

static int exit_of(const GError *error)
{
    if (error->domain != ASSAY_ERROR)
        return CLI_FAILED;
    switch ((AssayErrorCode)error->code) {
    case ASSAY_ERROR_INPUT:
        return CLI_USAGE;
    case ASSAY_ERROR_NOT_FOUND:
        return CLI_NOT_FOUND;
    case ASSAY_ERROR_NOT_ALLOWED:
        return CLI_NOT_ALLOWED;
    case ASSAY_ERROR_UNSUPPORTED:
        return CLI_UNREACHABLE;
    case ASSAY_ERROR_LIMIT:
    case ASSAY_ERROR_BUSY:
        return CLI_NO_ROOM;
    case ASSAY_ERROR_SYSTEM:
    case ASSAY_ERROR_CONFLICT:
        break;
    }
    return CLI_FAILED;
}

/* Lines and tabs stay; other control characters, and what is not UTF-8, are written as \xHH. */
static char *printable(const char *text)
{
    g_autoptr(GString) out = g_string_new(NULL);
    for (const char *p = text; *p != '\0';) {
        gunichar c = g_utf8_get_char_validated(p, -1);
        gsize len = c < (gunichar)-2 ? (gsize)g_unichar_to_utf8(c, NULL) : 1;
        gboolean plain = c == '\n' || c == '\t' || (c < (gunichar)-2 && !g_unichar_iscntrl(c));
        for (gsize i = 0; !plain && i < len; i++)
            g_string_append_printf(out, "\\x%02x", (guchar)p[i]);
        if (plain)
            g_string_append_len(out, p, (gssize)len);
        p += len;
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}

int cli_error(Cli *cli, GError *error, const char *hint)
{
    g_autoptr(GError) owned = error;
    g_autofree char *message = printable(owned->message);
    fprintf(stderr, "assay: %s\n", message);
    int status = exit_of(owned);
    if (hint == NULL && status == CLI_UNREACHABLE && strstr(owned->message, "reach") != NULL)
        hint = "assay up      start a daemon for your user";
    if (hint != NULL && !cli->quiet)
        fprintf(stderr, "  %s\n", hint);
    return status;
}

int cli_usage(Cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *given = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *text = printable(given);
    fprintf(stderr, "assay: %s\n", text);
    if (cli->command != NULL)
        fprintf(stderr, "  try: assay help %s\n", cli->command->name);
    return CLI_USAGE;
}

void cli_say(Cli *cli, const char *format, ...)
{
    if (cli->quiet)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *given = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *text = printable(given);
    fprintf(stderr, "%s\n", text);
}

void cli_print_json(const json_t *value)
{
    g_autofree char *text = json_print(value);
    puts(text);
}

CliTable *cli_table_new(Cli *cli, const char *const *columns)
{
    CliTable *table = g_new0(CliTable, 1);
    table->cli = cli;
    table->n_columns = g_strv_length((GStrv)(gsize)columns);
    table->rows = g_ptr_array_new_with_free_func((GDestroyNotify)g_strfreev);
    g_ptr_array_add(table->rows, g_strdupv((GStrv)(gsize)columns));
    return table;
}

void cli_table_add(CliTable *table, ...)
{
    GStrv row = g_new0(char *, table->n_columns + 1);
    va_list args;
    va_start(args, table);
    for (guint i = 0; i < table->n_columns; i++) {
        const char *text = va_arg(args, const char *);
        g_autofree char *flat = g_strdelimit(g_strdup(text != NULL ? text : ""), "\t\r\n", ' ');
        row[i] = printable(flat);
    }
    va_end(args);
    g_ptr_array_add(table->rows, row);
}

static void print_objects(const CliTable *table)
{
    GStrv names = g_ptr_array_index(table->rows, 0);

    for (guint r = 1; r < table->rows->len; r++) {
        GStrv row = g_ptr_array_index(table->rows, r);
        g_autoptr(json_t) object = json_object();

        for (guint c = 0; c < table->n_columns; c++)
            json_object_set_new(object, names[c], json_string(row[c]));
        cli_print_json(object);
    }
}

static void print_columns(const CliTable *table)
{
    gboolean tty = table->cli->out_tty;
    g_autofree gsize *widths = g_new0(gsize, table->n_columns);
    for (guint r = 0; r < table->rows->len; r++) {
        GStrv row = g_ptr_array_index(table->rows, r);
        for (guint c = 0; c < table->n_columns; c++)
            widths[c] = MAX(widths[c], (gsize)g_utf8_strlen(row[c], -1));
    }
    gboolean header = tty ? table->rows->len > 1 : table->cli->header;
    for (guint r = header ? 0 : 1; r < table->rows->len; r++) {
        GStrv row = g_ptr_array_index(table->rows, r);
        for (guint c = 0; c < table->n_columns; c++) {
            gboolean last = c + 1 == table->n_columns;
            fputs(row[c], stdout);
            gsize pad = widths[c] - (gsize)g_utf8_strlen(row[c], -1) + 2;
            if (!last)
                printf("%*s", tty ? (int)pad : 0, "");
            if (!last && !tty)
                putchar('\t');
        }
        putchar('\n');
    }
}

void cli_table_end(CliTable *table)
{
    if (table->cli->json)
        print_objects(table);
    else
        print_columns(table);
    g_ptr_array_unref(table->rows);
    g_free(table);
}

void cli_list_end(Cli *cli, CliTable *table, const json_t *list)
{
    if (table != NULL)
        cli_table_end(table);
    if (json_is_true(json_object_get(list, "has_more")))
        cli_say(cli, "there are more: --after %s", cli_json_str(list, "last_id"));
}

const char *cli_json_str(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

json_int_t cli_json_int(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

char *cli_reward(const json_t *grade)
{
    const json_t *reward = json_object_get(grade, "reward");
    return json_is_number(reward) ? g_strdup_printf("%g", json_number_value(reward))
                                  : g_strdup("-");
}

char *cli_absolute(const char *path)
{
    return g_canonicalize_filename(path, NULL);
}

void progress_start(Progress *progress, Cli *cli, gint64 total)
{
    *progress = (Progress){.cli = cli, .total = total, .start_ns = clock_mono_ns()};
    progress->drawn_ns = progress->start_ns;
    if (!cli->err_tty)
        cli_say(cli, "grading %" G_GINT64_FORMAT " patches", total);
}

void progress_add(Progress *progress, const json_t *grade)
{
    const char *verdict = cli_json_str(grade, "verdict");
    progress->done++;
    if (strcmp(cli_json_str(grade, "state"), "done") != 0)
        progress->failed++;
    else if (strcmp(verdict, "resolved") == 0)
        progress->resolved++;
    else if (strcmp(verdict, "unresolved") == 0)
        progress->unresolved++;
    else
        progress->other++;
}

static char *progress_text(const Progress *progress)
{
    double seconds = (double)(clock_mono_ns() - progress->start_ns) / 1e9;
    double rate = seconds > 0 ? (double)progress->done / seconds : 0;
    g_autoptr(GString) text = g_string_new(NULL);
    g_string_append_printf(text, "%" G_GINT64_FORMAT "/%" G_GINT64_FORMAT, progress->done,
                           progress->total);
    g_string_append_printf(text, "   resolved %" G_GINT64_FORMAT "  unresolved %" G_GINT64_FORMAT,
                           progress->resolved, progress->unresolved);
    if (progress->other > 0)
        g_string_append_printf(text, "  other %" G_GINT64_FORMAT, progress->other);
    if (progress->failed > 0)
        g_string_append_printf(text, "  failed %" G_GINT64_FORMAT, progress->failed);
    if (progress->done >= 10 && progress->done * 20 >= progress->total && rate > 0)
        g_string_append_printf(text, "   eta %.0f s",
                               (double)(progress->total - progress->done) / rate);
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void draw_block(const Progress *progress)
{
    struct winsize size = {0};
    ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
    g_autofree char *text = progress_text(progress);
    g_autoptr(GString) bar = g_string_new(NULL);
    gint64 full =
        progress->total > 0 ? progress->done * PROGRESS_BAR / progress->total : PROGRESS_BAR;
    for (gint64 i = 0; i < PROGRESS_BAR && size.ws_col >= 60; i++)
        g_string_append(bar, i < full ? "█" : "░");
    fprintf(stderr, "\r\033[K%s%s%.*s", bar->str, bar->len > 0 ? "  " : "",
            size.ws_col > 30 ? size.ws_col - (bar->len > 0 ? PROGRESS_BAR + 3 : 1) : 200, text);
    fflush(stderr);
}

void progress_draw(Progress *progress)
{
    gint64 now = clock_mono_ns();
    Cli *cli = progress->cli;
    if (cli->quiet)
        return;
    if (cli->err_tty) {
        if (now - progress->start_ns < PROGRESS_AFTER_NS ||
            (progress->drawn && now - progress->drawn_ns < PROGRESS_EVERY_NS))
            return;
        draw_block(progress);
        progress->drawn = TRUE;
        progress->drawn_ns = now;
        return;
    }
    gboolean tenth =
        progress->total > 0 && (progress->done - progress->line_done) * 10 >= progress->total;
    if (progress->done == progress->line_done || progress->done == progress->total ||
        !(tenth || now - progress->drawn_ns > PLAIN_EVERY_NS))
        return;
    g_autofree char *text = progress_text(progress);
    cli_say(cli, "%s", text);
    progress->line_done = progress->done;
    progress->drawn_ns = now;
}

void progress_end(Progress *progress)
{
    if (progress->cli->quiet)
        return;
    if (progress->cli->err_tty) {
        draw_block(progress);
        fputc('\n', stderr);
        return;
    }
    g_autofree char *text = progress_text(progress);
    cli_say(progress->cli, "%s", text);
}
