/*
 * Options of the box tool.
 *
 * Invariants:
 *   1. An option is one row: parser, help and man page are made from it.
 *   2. A value out of range is an error that names the option; nothing is clipped.
 *
 * Not here: what is done with them (box_tool.c).
 */
#include "sandbox/box_options.h"

#include "base/error.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>

typedef enum OptionKind {
    OPTION_FLAG,   /* gboolean */
    OPTION_TEXT,   /* char * */
    OPTION_LIST,   /* GPtrArray *, may be given several times */
    OPTION_NUMBER, /* guint64 */
    OPTION_ID,     /* guint64 below 65533 */
    OPTION_SIZE,   /* guint64, bytes */
    OPTION_TIME,   /* guint64, ms */
    OPTION_CPUS,   /* guint64, thousandths */
} OptionKind;

typedef struct Option {
    const char *name, *arg, *help;
    OptionKind kind;
    gsize offset;
} Option;

#define AT(field)    G_STRUCT_OFFSET(BoxOptions, field)
#define LIMIT(field) G_STRUCT_OFFSET(BoxOptions, limits.field)

/* clang-format off */
static const Option rows[] = {
    {"root", "DIR", "a root file system instead of the host's /usr", OPTION_TEXT, AT(root)},
    {"image", "NAME", "an image as the root (assay image ls); without a command, what it says", OPTION_TEXT, AT(image)},
    {"images", "DIR", "where images are (default: images in ASSAY_STATE, else in the state directory)", OPTION_TEXT, AT(images)},
    {"layer", "DIR", "a directory laid over the root; the first is topmost", OPTION_LIST, AT(layers)},
    {"work", "DIR", "shown as the workspace; writes do not reach it", OPTION_TEXT, AT(work)},
    {"work-path", "PATH", "where the workspace appears inside (default /work)", OPTION_TEXT, AT(work_path)},
    {"keep-upper", "DIR", "keep what is written to the workspace in DIR/upper", OPTION_TEXT, AT(keep_upper)},
    {"keep-root-upper", "DIR", "keep what is written elsewhere in DIR/upper", OPTION_TEXT, AT(keep_root_upper)},
    {"read-only-root", NULL, "only the workspace, /tmp and the like can be written", OPTION_FLAG, AT(root_read_only)},
    {"mount", "SRC:DST", "show a host directory read-only inside", OPTION_LIST, AT(mounts)},
    {"file", "SRC:DST", "put a copy of a host file inside, before the command", OPTION_LIST, AT(files)},
    {"env", "NAME=VALUE", "set a variable of the command", OPTION_LIST, AT(envp)},
    {"cwd", "PATH", "working directory inside (default: the workspace)", OPTION_TEXT, AT(cwd)},
    {"stdin", NULL, "pass our standard input on (default: /dev/null)", OPTION_FLAG, AT(pass_stdin)},
    {"merge", NULL, "standard error goes where standard output goes, in order", OPTION_FLAG, AT(merge)},
    {"uid", "N", "inside uid (default: the image's user, else 1000)", OPTION_ID, AT(uid)},
    {"gid", "N", "inside gid (default: that of the image's user, else the uid)", OPTION_ID, AT(gid)},
    {"hostname", "NAME", "host name inside (default sandbox)", OPTION_TEXT, AT(hostname)},
    {"net", "NET", "none (default), proxy, or host", OPTION_TEXT, AT(net)},
    {"allow", "HOST:PORT", "reachable through the proxy; *.HOST for all below; implies --net proxy", OPTION_LIST, AT(allow)},
    {"egress-bytes", "SIZE", "most bytes through the proxy, both ways", OPTION_SIZE, AT(egress_bytes)},
    {"mem", "SIZE", "memory, tmpfs files included (default 4G)", OPTION_SIZE, LIMIT(mem_bytes)},
    {"swap", "SIZE", "swap beyond that (default none)", OPTION_SIZE, LIMIT(swap_bytes)},
    {"cpus", "N", "at most so many CPUs at a time, such as 1.5", OPTION_CPUS, LIMIT(cpu_milli)},
    {"cpu-weight", "N", "share among busy boxes, 1 to 10000 (default 100)", OPTION_NUMBER, LIMIT(cpu_weight)},
    {"pids", "N", "processes and threads (default 512)", OPTION_NUMBER, LIMIT(pids)},
    {"wall", "TIME", "time (default 30m)", OPTION_TIME, LIMIT(wall_ms)},
    {"cpu", "TIME", "CPU time", OPTION_TIME, LIMIT(cpu_ms)},
    {"idle", "TIME", "time without output", OPTION_TIME, LIMIT(idle_ms)},
    {"disk", "SIZE", "what is written to each upper (default 2G)", OPTION_SIZE, LIMIT(disk_bytes)},
    {"inodes", "N", "files in each upper (default 1048576)", OPTION_NUMBER, LIMIT(inodes)},
    {"tmp", "SIZE", "/tmp and /dev/shm, each (default 1G)", OPTION_SIZE, LIMIT(tmp_bytes)},
    {"file-size", "SIZE", "one file (default 2G)", OPTION_SIZE, LIMIT(file_bytes)},
    {"nofile", "N", "open files of a process (default 4096)", OPTION_NUMBER, LIMIT(nofile)},
    {"stack", "SIZE", "stack of a process (default 8M)", OPTION_SIZE, LIMIT(stack_bytes)},
    {"output-keep", "SIZE", "output kept for --json, head and tail (default 16M)", OPTION_SIZE, LIMIT(output_bytes_keep)},
    {"output-kill", "SIZE", "a command that writes more is ended (default 256M)", OPTION_SIZE, LIMIT(output_bytes_kill)},
    {"require", "LAYER,...", "refuse to run without these layers", OPTION_TEXT, AT(require)},
    {"allow-degraded", NULL, "run without namespaces where there are none", OPTION_FLAG, AT(allow_degraded)},
    {"json", NULL, "print one object with everything, at the end", OPTION_FLAG, AT(json)},
    {"help", NULL, "print this", OPTION_FLAG, AT(help)},
};

static const struct {
    int status;
    const char *meaning;
} exits[] = {
    {BOX_EXIT_LIMIT, "a limit of time, CPU time, silence or output was reached"},
    {BOX_EXIT_NO_BOX, "there was no box: wrong options, a missing layer, a failure of this machine"},
    {BOX_EXIT_NOT_RUN, "the command was found and cannot be run"},
    {BOX_EXIT_NOT_FOUND, "the command was not found"},
    {BOX_EXIT_CANCELLED, "cancelled by SIGINT, SIGTERM or SIGHUP"},
    {BOX_EXIT_MEMORY, "out of memory"},
};
/* clang-format on */

typedef struct Suffix {
    const char *text;
    guint64 factor;
} Suffix;

static const Suffix size_suffixes[] = {
    {"", 1}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {NULL, 0}};
static const Suffix time_suffixes[] = {{"ms", 1},    {"s", 1000},    {"", 1000},
                                       {"m", 60000}, {"h", 3600000}, {NULL, 0}};
static const Suffix number_suffixes[] = {{"", 1}, {NULL, 0}};

/* "512M", "10s": digits and one of the suffixes. */
static gboolean read_amount(const char *text, const Suffix *suffixes, guint64 *ret_value)
{
    char *end = NULL;
    if (!g_ascii_isdigit(text[0]))
        return FALSE;
    guint64 value = g_ascii_strtoull(text, &end, 10);
    for (; suffixes->text != NULL; suffixes++) {
        if (!g_str_equal(end, suffixes->text))
            continue;
        *ret_value = value * suffixes->factor;
        return value <= G_MAXINT64 / suffixes->factor;
    }
    return FALSE;
}

/* "2", "0.5", "1.25": thousandths. */
static gboolean read_cpus(const char *text, guint64 *ret_milli)
{
    char *end = NULL;
    double cpus = g_ascii_isdigit(text[0]) ? g_ascii_strtod(text, &end) : -1;
    if (cpus < 0.01 || cpus > 1000 || *end != '\0')
        return FALSE;
    *ret_milli = (guint64)(cpus * 1000 + 0.5);
    return TRUE;
}

static gboolean set_value(const Option *option, BoxOptions *options, const char *value,
                          GError **error)
{
    void *at = (char *)options + option->offset;
    gboolean ok = TRUE;
    switch (option->kind) {
    case OPTION_FLAG:
        *(gboolean *)at = TRUE;
        break;
    case OPTION_TEXT:
        g_free(*(char **)at);
        *(char **)at = g_strdup(value);
        break;
    case OPTION_LIST:
        g_ptr_array_add(*(GPtrArray **)at, g_strdup(value));
        break;
    case OPTION_NUMBER:
        ok = read_amount(value, number_suffixes, at);
        break;
    case OPTION_ID:
        ok = read_amount(value, number_suffixes, at) && *(guint64 *)at < 65533;
        break;
    case OPTION_SIZE:
        ok = read_amount(value, size_suffixes, at);
        break;
    case OPTION_TIME:
        ok = read_amount(value, time_suffixes, at);
        break;
    case OPTION_CPUS:
    default:
        ok = read_cpus(value, at);
        break;
    }
    return ok || error_set(error, ASSAY_ERROR_INPUT, "--%s: %s is no %s", option->name, value,
                           option->arg);
}

static const Option *find(const char *name, GError **error)
{
    const char *names[G_N_ELEMENTS(rows) + 1] = {NULL};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (g_str_equal(rows[i].name, name))
            return &rows[i];
        names[i] = rows[i].name;
    }
    const char *near = word_nearest(name, names);
    error_set(error, ASSAY_ERROR_INPUT, "there is no option --%s%s%s%s", name,
              near != NULL ? "; did you mean --" : "", near != NULL ? near : "",
              near != NULL ? "?" : "");
    return NULL;
}

/* "--name=value", "--name value" or "--flag" at *I. */
static gboolean parse_one(int argc, char **argv, int *i, BoxOptions *options, GError **error)
{
    const char *equals = strchr(argv[*i], '=');
    g_autofree char *name = equals == NULL
                                ? g_strdup(argv[*i] + 2)
                                : g_strndup(argv[*i] + 2, (gsize)(equals - argv[*i] - 2));
    const Option *option = find(name, error);
    if (option == NULL)
        return FALSE;
    const char *value = equals == NULL ? NULL : equals + 1;
    if (option->kind == OPTION_FLAG && value != NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--%s takes no value", name);
    if (option->kind != OPTION_FLAG && value == NULL) {
        if (*i + 1 >= argc)
            return error_set(error, ASSAY_ERROR_INPUT, "--%s needs a value: %s", name, option->arg);
        value = argv[++*i];
    }
    options->has_uid |= option->offset == AT(uid);
    options->has_gid |= option->offset == AT(gid);
    return set_value(option, options, value, error);
}

gboolean box_options_parse(int argc, char **argv, BoxOptions *ret_options, GError **error)
{
    *ret_options = (BoxOptions){.limits = box_limits_default(), .uid = 1000};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].kind == OPTION_LIST)
            *(GPtrArray **)(gpointer)((char *)ret_options + rows[i].offset) =
                g_ptr_array_new_with_free_func(g_free);
    int i = 1;
    for (; i < argc && g_str_has_prefix(argv[i], "-") && argv[i][1] != '\0'; i++) {
        if (g_str_equal(argv[i], "--")) {
            i++;
            break;
        }
        if (!g_str_has_prefix(argv[i], "--"))
            return error_set(error, ASSAY_ERROR_INPUT, "there is no option %s: all are long",
                             argv[i]);
        if (!parse_one(argc, argv, &i, ret_options, error))
            return FALSE;
    }
    ret_options->command = g_strdupv(argv + i);
    if (!ret_options->has_gid)
        ret_options->gid = ret_options->uid;
    return TRUE;
}

void box_options_clear(BoxOptions *options)
{
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        void *at = (char *)options + rows[i].offset;
        if (rows[i].kind == OPTION_TEXT)
            g_clear_pointer((char **)at, g_free);
        if (rows[i].kind == OPTION_LIST)
            g_clear_pointer((GPtrArray **)at, g_ptr_array_unref);
    }
    g_clear_pointer(&options->command, g_strfreev);
}

void box_options_print_help(void)
{
    printf("usage: assay box run [OPTION...] [--] COMMAND [ARGUMENT...]\n"
           "       assay box shell [OPTION...] [--] [COMMAND [ARGUMENT...]]\n"
           "       assay box probe\n\nOptions:\n");
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *left =
            g_strdup_printf("--%s %s", rows[i].name, rows[i].arg != NULL ? rows[i].arg : "");
        printf("  %-24s %s\n", left, rows[i].help);
    }
    printf("\nSIZE is a number with K, M or G; TIME one with ms, s, m or h. 0 lifts a limit.\n"
           "\nExit status: the command's own, 128 + N when signal N ended it, or\n");
    for (gsize i = 0; i < G_N_ELEMENTS(exits); i++)
        printf("  %d  %s\n", exits[i].status, exits[i].meaning);
}

void box_options_print_man(void)
{
    printf(
        ".TH ASSAY-BOX 1 \"\" \"assay " ASSAY_VERSION "\"\n.SH NAME\n"
        "assay-box \\- run a command where it can neither get out, nor see, nor change the host\n"
        ".SH SYNOPSIS\n.B assay box run\n[OPTION...] [\\-\\-] COMMAND [ARGUMENT...]\n.br\n"
        ".B assay box shell\n[OPTION...] [\\-\\-] [COMMAND [ARGUMENT...]]\n.br\n"
        ".B assay box probe\n.SH DESCRIPTION\n"
        "Output appears as it is written. SIGINT ends the command. A terminal is the box's own, "
        "never the caller's.\nSIZE is a number with K, M or G; TIME one with ms, s, m or h. 0 "
        "lifts a limit.\n.SH OPTIONS\n");
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        printf(".TP\n.B \\-\\-%s %s\n%s\n", rows[i].name, rows[i].arg != NULL ? rows[i].arg : "",
               rows[i].help);
    printf(".SH EXIT STATUS\nThe command's own; 128 + N when signal N ended it; or\n");
    for (gsize i = 0; i < G_N_ELEMENTS(exits); i++)
        printf(".TP\n.B %d\n%s\n", exits[i].status, exits[i].meaning);
    printf(".SH SEE ALSO\n.BR assay (1)\n");
}
