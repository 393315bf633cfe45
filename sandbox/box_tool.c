/*
 * Boxes from the command line.
 *
 * Invariants:
 *   1. The command's output goes to stdout and stderr as it is; what the tool itself has to say
 *      goes to stderr, or with --json to stdout as one object.
 *   2. A degraded box is never used without --allow-degraded, and never without saying so.
 *
 * Not here: what a box is (box.c).
 */
#include "sandbox/box_tool.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "sandbox/box.h"
#include "sandbox/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define EXIT_TIMED_OUT  124
#define EXIT_NO_BOX     125
#define EXIT_NOT_RUN    126
#define EXIT_NOT_FOUND  127
#define EXIT_SIGNALED   128
#define EXIT_MEMORY     137
#define TOOL_SLOT_FIRST 1024u
#define TOOL_SLOTS      1000u /* spread over pids: two tools rarely share one */

typedef struct ToolOptions {
    char *net, *mem, *wall, *disk, *work, *root, *work_path, *image, *images;
    int pids, uid;
    gboolean allow_degraded, json;
    char **command;
} ToolOptions;

static void tool_options_clear(ToolOptions *options)
{
    char *texts[] = {options->net,       options->mem,   options->wall,
                     options->disk,      options->work,  options->root,
                     options->work_path, options->image, options->images};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_free(texts[i]);
    g_strfreev(options->command);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ToolOptions, tool_options_clear)

typedef struct Suffix {
    const char *text;
    guint64 factor;
} Suffix;

/* "512M", "10s": a number and one of the suffixes. */
static gboolean parse_amount(const char *text, const Suffix *suffixes, guint64 *ret_value,
                             GError **error)
{
    char *end = NULL;
    guint64 value = g_ascii_strtoull(text, &end, 10);
    for (; end != text && suffixes->text != NULL; suffixes++) {
        if (!g_str_equal(end, suffixes->text))
            continue;
        if (value > G_MAXINT64 / suffixes->factor)
            break;
        *ret_value = value * suffixes->factor;
        return TRUE;
    }
    return error_set(error, ASSAY_ERROR_INPUT, "%s is not a number with a known suffix", text);
}

static const Suffix size_suffixes[] = {
    {"", 1}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {NULL, 0}};
static const Suffix time_suffixes[] = {{"ms", 1}, {"s", 1000}, {"", 1000}, {"m", 60000}, {NULL, 0}};

static gboolean parse_command_line(int argc, char **argv, ToolOptions *options, GError **error)
{
    const GOptionEntry entries[] = {
        {"net", 0, 0, G_OPTION_ARG_STRING, &options->net, "none (default) or host", "NET"},
        {"mem", 0, 0, G_OPTION_ARG_STRING, &options->mem, "memory limit, such as 512M", "SIZE"},
        {"disk", 0, 0, G_OPTION_ARG_STRING, &options->disk, "limit of what is written", "SIZE"},
        {"wall", 0, 0, G_OPTION_ARG_STRING, &options->wall, "time limit, such as 10s", "TIME"},
        {"pids", 0, 0, G_OPTION_ARG_INT, &options->pids, "process limit", "N"},
        {"work", 0, 0, G_OPTION_ARG_FILENAME, &options->work,
         "directory shown as the workspace; writes do not reach it", "DIR"},
        {"work-path", 0, 0, G_OPTION_ARG_STRING, &options->work_path,
         "where it appears inside (default /work)", "PATH"},
        {"root", 0, 0, G_OPTION_ARG_FILENAME, &options->root,
         "directory with a root file system, instead of the host's /usr", "DIR"},
        {"image", 0, 0, G_OPTION_ARG_STRING, &options->image,
         "image of the store as the root (assay image ls)", "NAME"},
        {"images", 0, 0, G_OPTION_ARG_FILENAME, &options->images,
         "the store (default: images of ASSAY_STATE, else of the state directory)", "DIR"},
        {"uid", 0, 0, G_OPTION_ARG_INT, &options->uid, "inside uid and gid (default 1000)", "N"},
        {"allow-degraded", 0, 0, G_OPTION_ARG_NONE, &options->allow_degraded,
         "run without namespaces where there are none", NULL},
        {"json", 0, 0, G_OPTION_ARG_NONE, &options->json, "print one object with everything", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &options->command, NULL, NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
    g_autoptr(GOptionContext) context = g_option_context_new("-- COMMAND [ARGUMENT...]");
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_strict_posix(context, TRUE);
    options->uid = 1000;
    return g_option_context_parse(context, &argc, &argv, error);
}

static gboolean fill_limits(const ToolOptions *options, BoxLimits *limits, GError **error)
{
    *limits = box_limits_default();
    if (options->pids > 0)
        limits->pids = (guint64)options->pids;
    return (options->mem == NULL ||
            parse_amount(options->mem, size_suffixes, &limits->mem_bytes, error)) &&
           (options->disk == NULL ||
            parse_amount(options->disk, size_suffixes, &limits->disk_bytes, error)) &&
           (options->wall == NULL ||
            parse_amount(options->wall, time_suffixes, &limits->wall_ms, error));
}

static gboolean open_dir(const char *path, int *ret_fd, GError **error)
{
    if (path == NULL)
        return TRUE;
    *ret_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *ret_fd >= 0 || error_set_errno(error, errno, "open %s", path);
}

/* The root of a box: the layers of an image, one directory, or nothing. */
typedef struct ToolRoot {
    int fds[IMAGE_LAYERS_MAX];
    gsize n;
    Image *image; /* NULL: none */
} ToolRoot;

static void tool_root_clear(ToolRoot *root)
{
    for (gsize i = 0; i < root->n; i++)
        close(root->fds[i]);
    image_free(root->image);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ToolRoot, tool_root_clear)

static Depot *open_depot(const char *dir, GError **error)
{
    const char *state = g_getenv("ASSAY_STATE");
    g_autofree char *usual =
        state != NULL && state[0] != '\0'
            ? g_build_filename(state, "images", NULL)
            : g_build_filename(g_get_user_state_dir(), "assay", "images", NULL);
    return depot_open(dir != NULL ? dir : usual, 0, error);
}

static gboolean open_root(const ToolOptions *options, ToolRoot *root, GError **error)
{
    int fd = -1;
    if (options->image != NULL) {
        g_autoptr(Depot) depot = open_depot(options->images, error);
        root->image = depot == NULL ? NULL : image_get(depot, options->image, error);
        return root->image != NULL &&
               image_layers_open(depot, root->image, root->fds, &root->n, error);
    }
    if (!open_dir(options->root, &fd, error))
        return FALSE;
    if (fd >= 0)
        root->fds[root->n++] = fd;
    return TRUE;
}

/* The command; without one, what the image says. */
static GStrv image_argv(const ToolOptions *options, const ToolRoot *root)
{
    return options->command != NULL || root->image == NULL ? g_strdupv(options->command)
                                                           : image_config_argv(root->image);
}

static GStrv image_envp(const ToolOptions *options, const ToolRoot *root)
{
    return root->image != NULL ? image_config_envp(root->image, (guint)options->uid) : NULL;
}

static int exit_status(const BoxResult *result)
{
    switch (result->outcome) {
    case BOX_EXITED:
        return result->exit_code;
    case BOX_SIGNALED:
        return EXIT_SIGNALED + result->signal;
    case BOX_TIMED_OUT:
    case BOX_IDLE_LIMIT:
    case BOX_CPU_LIMIT:
        return EXIT_TIMED_OUT;
    case BOX_OUT_OF_MEMORY:
        return EXIT_MEMORY;
    case BOX_START_ERROR:
        return result->start_errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_RUN;
    case BOX_NONE:
    case BOX_OUTPUT_LIMIT:
    case BOX_DISK_FULL:
    case BOX_CANCELLED:
    default:
        return EXIT_NO_BOX;
    }
}

/* Bytes as JSON text: what is not UTF-8 becomes U+FFFD. */
static json_t *text_json(GBytes *bytes)
{
    gsize len = 0;
    const char *data = bytes == NULL ? "" : g_bytes_get_data(bytes, &len);
    g_autofree char *text = g_utf8_make_valid(data == NULL ? "" : data, (gssize)len);
    return json_string(text);
}

static void print_json(const Box *box, const BoxResult *result)
{
    g_autofree char *report = box_report_json(box);
    g_autoptr(json_t) out = json_pack(
        "{s:s, s:i, s:i, s:o, s:o, s:b, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:s, s:s, s:o}",
        "outcome", box_outcome_str(result->outcome), "exit_code", result->exit_code, "signal",
        result->signal, "stdout", text_json(result->out), "stderr", text_json(result->err),
        "truncated", result->truncated, "setup_us", (json_int_t)result->setup_us, "wall_us",
        (json_int_t)result->wall_us, "cpu_user_us", (json_int_t)result->cpu_user_us, "cpu_sys_us",
        (json_int_t)result->cpu_sys_us, "mem_peak_bytes", (json_int_t)result->mem_peak_bytes,
        "oom_kills", (int)result->oom_kills, "leftover_procs", (int)result->leftover_procs,
        "cpu_by", box_by_str(result->cpu_by), "mem_by", box_by_str(result->mem_by), "box",
        json_parse(report, strlen(report), NULL));
    g_autofree char *text = json_print(out);
    puts(text);
}

static void print_plain(const BoxResult *result, gboolean interactive)
{
    gsize len = 0;
    gconstpointer data = interactive ? NULL : g_bytes_get_data(result->out, &len);
    if (data != NULL)
        fwrite(data, 1, len, stdout);
    data = interactive ? NULL : g_bytes_get_data(result->err, &len);
    if (data != NULL)
        fwrite(data, 1, len, stderr);
    if (result->outcome == BOX_START_ERROR)
        fprintf(stderr, "assay box: cannot start the command: %s\n",
                g_strerror(result->start_errno));
    else if (result->outcome != BOX_EXITED)
        fprintf(stderr, "assay box: %s\n", box_outcome_str(result->outcome));
}

static void warn_if_degraded(const Box *box)
{
    if (!(box_enforced(box) & BOX_LAYER_MOUNT))
        fprintf(stderr, "assay box: DEGRADED: no namespaces here; Landlock, filter and limits "
                        "only (assay doctor says why)\n");
}

static gboolean run(const ToolOptions *options, gboolean shell, int *ret_status, GError **error)
{
    static const char *const shell_argv[] = {"/bin/sh", "-i", NULL};
    BoxSpec spec = {.uid = (guint)options->uid,
                    .gid = (guint)options->uid,
                    .slot = TOOL_SLOT_FIRST + (guint)getpid() % TOOL_SLOTS,
                    .work_path = options->work_path,
                    .net = g_strcmp0(options->net, "host") == 0 ? BOX_NET_HOST : BOX_NET_NONE,
                    .allow_degraded = options->allow_degraded};
    AUTO_FD work = -1;
    g_auto(ToolRoot) root = {0};
    if (!fill_limits(options, &spec.limits, error) || !open_dir(options->work, &work, error) ||
        !open_root(options, &root, error))
        return FALSE;
    if (shell)
        spec.limits.wall_ms = spec.limits.output_bytes_kill = 0;
    spec.root_fds = root.fds;
    spec.n_root = root.n;
    spec.work_fds = &work;
    spec.n_work = work >= 0 ? 1 : 0;

    g_autoptr(Box) box = box_open(&spec, error);
    if (box == NULL)
        return FALSE;
    warn_if_degraded(box);
    g_auto(GStrv) argv = image_argv(options, &root), envp = image_envp(options, &root);
    const char *cwd = root.image != NULL ? image_config_str(root.image, "WorkingDir") : "";
    const BoxCommand command = {
        .argv = shell && options->command == NULL ? shell_argv : (const char *const *)argv,
        .envp = (const char *const *)envp,
        .cwd = cwd[0] == '/' && options->work == NULL ? cwd : NULL};
    g_auto(BoxResult) result = {0};
    if (!(shell ? box_exec_terminal : box_exec)(box, &command, &result, error))
        return FALSE;
    if (options->json)
        print_json(box, &result);
    else
        print_plain(&result, shell);
    *ret_status = exit_status(&result);
    return TRUE;
}

static int usage(void)
{
    fprintf(stderr, "usage: assay box run [OPTION...] -- COMMAND [ARGUMENT...]\n"
                    "       assay box shell [OPTION...]\n"
                    "       assay box probe\n"
                    "Options: assay box run --help\n");
    return EXIT_NO_BOX;
}

int box_tool_main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (g_str_equal(verb, "probe")) {
        g_autofree char *text = box_probe_json();
        puts(text);
        return 0;
    }
    gboolean shell = g_str_equal(verb, "shell");
    if (!shell && !g_str_equal(verb, "run"))
        return usage();

    g_auto(ToolOptions) options = {0};
    g_autoptr(GError) error = NULL;
    int status = EXIT_NO_BOX;
    if (!parse_command_line(argc - 1, argv + 1, &options, &error)) {
        fprintf(stderr, "assay box: %s\n", error->message);
        return EXIT_NO_BOX;
    }
    if (!shell && options.command == NULL && options.image == NULL)
        return usage();
    if (!run(&options, shell, &status, &error))
        fprintf(stderr, "assay box: %s\n", error->message);
    return status;
}
