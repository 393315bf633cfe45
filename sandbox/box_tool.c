/*
 * Boxes from the command line.
 *
 * Invariants:
 *   1. The command's output goes to stdout and stderr as it is written; what the tool itself has to
 *      say goes to stderr, or with --json everything to stdout as one object at the end.
 *   2. A degraded box is never used without --allow-degraded, and never without saying so.
 *   3. Our descriptors are never the command's: output and input are copied.
 *
 * Not here: the options (box_options.c), what a box is (box.c).
 */
#include "sandbox/box_tool.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "sandbox/box_options.h"
#include "sandbox/image.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#define TOOL_SLOT_FIRST 1024u
#define TOOL_SLOTS      1000u       /* spread over pids: two tools rarely share one */
#define FILE_BYTES_MAX  (64u << 20) /* of one --file */
#define ITEMS_MAX       64u         /* of one kind of list */

/* What the options name, opened. */
typedef struct Tool {
    const BoxOptions *options;
    BoxSpec spec;
    GArray *fds; /* all of them, to be closed */
    int layers[ITEMS_MAX], work, roots[IMAGE_LAYERS_MAX];
    Image *image; /* NULL: none */
    BoxMount mounts[ITEMS_MAX];
    BoxFile files[ITEMS_MAX];
    GPtrArray *bytes; /* of the files */
    char **envp;
} Tool;

static void tool_clear(Tool *tool)
{
    for (guint i = 0; i < tool->fds->len; i++)
        close(g_array_index(tool->fds, int, i));
    g_array_unref(tool->fds);
    g_ptr_array_unref(tool->bytes);
    g_strfreev(tool->envp);
    image_free(tool->image);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Tool, tool_clear)

/* Remembered, so that it is closed. */
static gboolean open_at(Tool *tool, int dir_fd, const char *path, int flags, int *ret_fd,
                        GError **error)
{
    *ret_fd = openat(dir_fd, path, flags | O_CLOEXEC);
    if (*ret_fd < 0)
        return error_set_errno(error, errno, "open %s", path);
    g_array_append_val(tool->fds, *ret_fd);
    return TRUE;
}

static gboolean open_dir(Tool *tool, const char *path, int *ret_fd, GError **error)
{
    return path == NULL || open_at(tool, AT_FDCWD, path, O_RDONLY | O_DIRECTORY, ret_fd, error);
}

static Depot *open_depot(const char *dir, GError **error)
{
    const char *state = g_getenv("ASSAY_STATE");
    g_autofree char *usual =
        state != NULL && state[0] != '\0'
            ? g_build_filename(state, "images", NULL)
            : g_build_filename(g_get_user_state_dir(), "assay", "images", NULL);
    return depot_open(dir != NULL ? dir : usual, 0, error);
}

/* The layers of an image, one directory, or nothing: the host's. */
static gboolean open_root(Tool *tool, GError **error)
{
    const BoxOptions *options = tool->options;
    tool->spec.root_fds = tool->roots;
    if (options->image == NULL) {
        tool->spec.n_root = options->root != NULL;
        return open_dir(tool, options->root, &tool->roots[0], error);
    }
    if (options->root != NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--image and --root are both given");
    g_autoptr(Depot) depot = open_depot(options->images, error);
    tool->image = depot == NULL ? NULL : image_get(depot, options->image, error);
    if (tool->image == NULL ||
        !image_layers_open(depot, tool->image, tool->roots, &tool->spec.n_root, error))
        return FALSE;
    g_array_append_vals(tool->fds, tool->roots, (guint)tool->spec.n_root);
    return options->has_uid || options->has_gid ||
           image_config_ids(tool->image, tool->roots, tool->spec.n_root, &tool->spec.uid,
                            &tool->spec.gid, error);
}

static gboolean check_count(const GPtrArray *list, const char *option, GError **error)
{
    return list->len <= ITEMS_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "more than %u of --%s", ITEMS_MAX, option);
}

/* "SRC:DST": DST is absolute, so the last ":/" divides. */
static gboolean split(const char *text, const char *option, char **ret_from, const char **ret_to,
                      GError **error)
{
    const char *colon = g_strrstr(text, ":/");
    if (colon == NULL || colon == text)
        return error_set(error, ASSAY_ERROR_INPUT, "--%s %s is not SRC:/DST", option, text);
    *ret_from = g_strndup(text, (gsize)(colon - text));
    *ret_to = colon + 1;
    return TRUE;
}

static gboolean open_layers(Tool *tool, GError **error)
{
    const GPtrArray *list = tool->options->layers;
    if (!check_count(list, "layer", error))
        return FALSE;
    for (guint i = 0; i < list->len; i++)
        if (!open_dir(tool, list->pdata[i], &tool->layers[i], error))
            return FALSE;
    tool->spec.layer_fds = tool->layers;
    tool->spec.n_layers = list->len;
    return TRUE;
}

static gboolean open_mounts(Tool *tool, GError **error)
{
    const GPtrArray *list = tool->options->mounts;
    if (!check_count(list, "mount", error))
        return FALSE;
    for (guint i = 0; i < list->len; i++) {
        g_autofree char *from = NULL;
        BoxMount *mount = &tool->mounts[i];
        if (!split(list->pdata[i], "mount", &from, &mount->path, error) ||
            !open_dir(tool, from, &mount->dir_fd, error))
            return FALSE;
    }
    tool->spec.mounts = tool->mounts;
    tool->spec.n_mounts = list->len;
    return TRUE;
}

static gboolean read_files(Tool *tool, GError **error)
{
    const GPtrArray *list = tool->options->files;
    if (!check_count(list, "file", error))
        return FALSE;
    for (guint i = 0; i < list->len; i++) {
        g_autofree char *from = NULL;
        BoxFile *file = &tool->files[i];
        struct stat st;
        int fd = -1;
        if (!split(list->pdata[i], "file", &from, &file->path, error) ||
            !open_at(tool, AT_FDCWD, from, O_RDONLY | O_NONBLOCK, &fd, error))
            return FALSE;
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
            return error_set(error, ASSAY_ERROR_INPUT, "%s is not a file", from);
        GBytes *bytes = fd_read_all(fd, FILE_BYTES_MAX, error);
        if (bytes == NULL) {
            g_prefix_error(error, "%s: ", from);
            return FALSE;
        }
        g_ptr_array_add(tool->bytes, bytes);
        file->data = g_bytes_get_data(bytes, &file->len);
        file->mode = st.st_mode & 0777;
    }
    return TRUE;
}

/* DIR with "upper" and "work" in it, owned as boxes want it. */
static gboolean open_upper(Tool *tool, const char *path, int *ret_fd, GError **error)
{
    static const char *const names[] = {".", "upper", "work"};
    if (path == NULL)
        return TRUE;
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return error_set_errno(error, errno, "make %s", path);
    if (!open_dir(tool, path, ret_fd, error))
        return FALSE;
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        if ((i > 0 && mkdirat(*ret_fd, names[i], 0755) < 0 && errno != EEXIST) ||
            (geteuid() == 0 && fchownat(*ret_fd, names[i], box_store_uid(), box_store_gid(),
                                        AT_SYMLINK_NOFOLLOW) < 0))
            return error_set_errno(error, errno, "prepare %s/%s", path, names[i]);
    return TRUE;
}

static gboolean read_net(Tool *tool, GError **error)
{
    static const char *const words[] = {"none", "host", "proxy", NULL};
    const BoxOptions *options = tool->options;
    gboolean has_rules = options->allow->len > 1; /* it ends with NULL */
    const char *net = options->net != NULL ? options->net : has_rules ? "proxy" : "none";
    for (int i = 0; words[i] != NULL; i++)
        if (g_str_equal(words[i], net))
            tool->spec.net = (BoxNet)i;
    if (!g_strv_contains(words, net))
        return error_set(error, ASSAY_ERROR_INPUT, "--net %s is not none, proxy or host", net);
    if (has_rules && tool->spec.net != BOX_NET_PROXY)
        return error_set(error, ASSAY_ERROR_INPUT, "--allow needs --net proxy, not %s", net);
    tool->spec.egress.allow = (const char *const *)options->allow->pdata;
    tool->spec.egress.bytes_max = options->egress_bytes;
    return TRUE;
}

static gboolean read_require(Tool *tool, GError **error)
{
    const char *names[33] = {NULL};
    gsize n = 0;
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1)
        names[n++] = box_layer_str((BoxLayer)bit);
    if (tool->options->require == NULL)
        return TRUE;
    g_auto(GStrv) words = g_strsplit(tool->options->require, ",", -1);
    for (char **word = words; *word != NULL; word++) {
        guint bit = 0;
        for (gsize i = 0; i < n; i++)
            bit |= g_str_equal(names[i], *word) ? 1u << i : 0;
        const char *near = word_nearest(*word, names);
        if (bit == 0)
            return error_set(error, ASSAY_ERROR_INPUT, "--require: there is no layer %s%s%s%s",
                             *word, near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                             near != NULL ? "?" : "");
        tool->spec.require |= bit;
    }
    return TRUE;
}

/* The default environment, the image's on top, --env on top. */
static gboolean make_envp(Tool *tool, GError **error)
{
    tool->envp = tool->image != NULL ? image_config_envp(tool->image, tool->spec.uid)
                                     : g_strdupv((char **)(gsize)box_envp_default(tool->spec.uid));
    if (tool->spec.net == BOX_NET_PROXY) {
        g_auto(GStrv) plain = tool->envp;
        tool->envp = box_envp_proxied((const char *const *)plain);
    }
    for (guint i = 0; i < tool->options->envp->len; i++) {
        const char *pair = tool->options->envp->pdata[i];
        const char *equals = strchr(pair, '=');
        if (equals == NULL || equals == pair)
            return error_set(error, ASSAY_ERROR_INPUT, "--env %s is not NAME=VALUE", pair);
        g_autofree char *name = g_strndup(pair, (gsize)(equals - pair));
        tool->envp = g_environ_setenv(tool->envp, name, equals + 1, TRUE);
    }
    return TRUE;
}

static gboolean prepare(Tool *tool, gboolean shell, GError **error)
{
    const BoxOptions *options = tool->options;
    tool->spec = (BoxSpec){.uid = (guint)options->uid,
                           .gid = (guint)options->gid,
                           .slot = TOOL_SLOT_FIRST + (guint)getpid() % TOOL_SLOTS,
                           .work_path = options->work_path,
                           .hostname = options->hostname,
                           .root_read_only = options->root_read_only,
                           .limits = options->limits,
                           .allow_degraded = options->allow_degraded,
                           .work_fds = &tool->work};
    if (shell)
        tool->spec.limits.wall_ms = tool->spec.limits.output_bytes_kill = 0;
    if (!open_root(tool, error) || !open_dir(tool, options->work, &tool->work, error) ||
        !open_layers(tool, error) || !open_mounts(tool, error) || !read_files(tool, error) ||
        !open_upper(tool, options->keep_upper, &tool->spec.work_upper_fd, error) ||
        !open_upper(tool, options->keep_root_upper, &tool->spec.root_upper_fd, error))
        return FALSE;
    tool->spec.n_work = options->work != NULL;
    return read_net(tool, error) && read_require(tool, error) && make_envp(tool, error);
}

static int exit_status(const BoxResult *result)
{
    switch (result->outcome) {
    case BOX_EXITED:
        return result->exit_code;
    case BOX_SIGNALED:
        return BOX_EXIT_SIGNALED + result->signal;
    case BOX_TIMED_OUT:
    case BOX_IDLE_LIMIT:
    case BOX_CPU_LIMIT:
    case BOX_OUTPUT_LIMIT:
        return BOX_EXIT_LIMIT;
    case BOX_OUT_OF_MEMORY:
        return BOX_EXIT_MEMORY;
    case BOX_CANCELLED:
        return BOX_EXIT_CANCELLED;
    case BOX_START_ERROR:
        return result->start_errno == ENOENT ? BOX_EXIT_NOT_FOUND : BOX_EXIT_NOT_RUN;
    case BOX_NONE:
    case BOX_DISK_FULL:
    default:
        return BOX_EXIT_NO_BOX;
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
        "{s:s, s:i, s:i, s:o, s:o, s:b, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:s, s:s, s:o}",
        "outcome", box_outcome_str(result->outcome), "exit_code", result->exit_code, "signal",
        result->signal, "stdout", text_json(result->out), "stderr", text_json(result->err),
        "truncated", result->truncated, "setup_us", (json_int_t)result->setup_us, "wall_us",
        (json_int_t)result->wall_us, "cpu_user_us", (json_int_t)result->cpu_user_us, "cpu_sys_us",
        (json_int_t)result->cpu_sys_us, "mem_peak_bytes", (json_int_t)result->mem_peak_bytes,
        "oom_kills", (int)result->oom_kills, "pids_peak", (int)result->pids_peak, "leftover_procs",
        (int)result->leftover_procs, "cpu_by", box_by_str(result->cpu_by), "mem_by",
        box_by_str(result->mem_by), "box", json_parse(report, strlen(report), NULL));
    g_autofree char *text = json_print(out);
    puts(text);
}

static void print_end(const BoxResult *result)
{
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

/* Readable once one of the signals that end us has come. */
static int cancel_fd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Output as it comes; a lost reader is not the command's end. */
static void show(gpointer data, gboolean is_err, const void *bytes, gsize len)
{
    (void)data;
    fd_write_all(is_err ? STDERR_FILENO : STDOUT_FILENO, bytes, len, NULL);
}

/* What there is of our input; its end, or the command's disinterest, ends ours. */
static gboolean pass_input(BoxRun *run)
{
    char bytes[65536];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return TRUE;
    if (n > 0)
        return box_run_write(run, bytes, (gsize)n, NULL);
    box_run_end_input(run);
    return FALSE;
}

static gboolean exec_piped(Box *box, const BoxCommand *command, BoxResult *ret_result,
                           GError **error)
{
    BoxRun *run = box_start(box, command, error);
    gboolean has_input = command->stdin_open, ok = run != NULL;
    while (ok && !box_run_is_done(run)) {
        GPollFD polled[BOX_RUN_FDS + 1];
        int wait_ms;
        box_run_poll(run, polled, &wait_ms);
        polled[BOX_RUN_FDS] = (GPollFD){
            .fd = has_input && box_run_waiting(run) == 0 ? STDIN_FILENO : -1, .events = G_IO_IN};
        ok = g_poll(polled, BOX_RUN_FDS + 1, wait_ms) >= 0 || errno == EINTR ||
             error_set_errno(error, errno, "poll");
        if (ok && polled[BOX_RUN_FDS].revents != 0)
            has_input = pass_input(run);
        ok = ok && box_run_step(run, error);
    }
    return run != NULL && box_run_finish(run, ret_result, ok ? error : NULL) && ok;
}

/* Without a command, what the image says. */
static GStrv command_of(const Tool *tool)
{
    return tool->options->command[0] == NULL && tool->image != NULL
               ? image_config_argv(tool->image)
               : g_strdupv(tool->options->command);
}

/* Without a directory of ours, the image's. */
static const char *cwd_of(const Tool *tool)
{
    const BoxOptions *options = tool->options;
    const char *dir = tool->image != NULL ? image_config_str(tool->image, "WorkingDir") : "";
    return options->cwd == NULL && options->work == NULL && dir[0] == '/' ? dir : options->cwd;
}

static gboolean run(Tool *tool, gboolean shell, int *ret_status, GError **error)
{
    static const char *const shell_argv[] = {"/bin/sh", "-i", NULL};
    const BoxOptions *options = tool->options;
    AUTO_FD cancel = cancel_fd();
    if (cancel < 0)
        return error_set_errno(error, errno, "signalfd");
    g_autoptr(Box) box = prepare(tool, shell, error) ? box_open(&tool->spec, error) : NULL;
    if (box == NULL)
        return FALSE;
    warn_if_degraded(box);
    g_auto(GStrv) argv = command_of(tool);
    if (argv[0] == NULL && !shell)
        return error_set(error, ASSAY_ERROR_INPUT, "the image names no command; give one");
    BoxCommand command = {.argv = shell && options->command[0] == NULL ? shell_argv
                                                                       : (const char *const *)argv,
                          .envp = (const char *const *)tool->envp,
                          .cwd = cwd_of(tool),
                          .files = tool->files,
                          .n_files = options->files->len,
                          .stdin_open = options->pass_stdin && !shell,
                          .merge = options->merge,
                          .on_output = options->json || shell ? NULL : show,
                          .cancel_fd = cancel};
    g_auto(BoxResult) result = {0};
    if (!(shell ? box_exec_terminal : exec_piped)(box, &command, &result, error))
        return FALSE;
    if (options->json)
        print_json(box, &result);
    else
        print_end(&result);
    *ret_status = exit_status(&result);
    return TRUE;
}

static int usage(void)
{
    fprintf(stderr, "usage: assay box run [OPTION...] [--] COMMAND [ARGUMENT...]\n"
                    "       assay box shell [OPTION...] [--] [COMMAND [ARGUMENT...]]\n"
                    "       assay box probe\n"
                    "Options: assay box help\n");
    return BOX_EXIT_NO_BOX;
}

static int run_verb(int argc, char **argv, gboolean shell)
{
    g_auto(BoxOptions) options = {0};
    g_auto(Tool) tool = {.options = &options,
                         .fds = g_array_new(FALSE, FALSE, sizeof(int)),
                         .bytes = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref)};
    g_autoptr(GError) error = NULL;
    int status = BOX_EXIT_NO_BOX;
    if (!box_options_parse(argc, argv, &options, &error)) {
        fprintf(stderr, "assay box: %s\n", error->message);
        return BOX_EXIT_NO_BOX;
    }
    if (options.help) {
        box_options_print_help();
        return 0;
    }
    if (!shell && options.command[0] == NULL && options.image == NULL)
        return usage();
    g_ptr_array_add(options.allow, NULL);
    if (!run(&tool, shell, &status, &error))
        fprintf(stderr, "assay box: %s\n", error->message);
    return status;
}

int box_tool_main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (g_str_equal(verb, "probe")) {
        g_autofree char *text = box_probe_json();
        puts(text);
        return 0;
    }
    if (g_str_equal(verb, "help") || g_str_equal(verb, "--help")) {
        if (argc > 2 && g_str_equal(argv[2], "--man"))
            box_options_print_man();
        else
            box_options_print_help();
        return 0;
    }
    gboolean shell = g_str_equal(verb, "shell");
    if (!shell && !g_str_equal(verb, "run"))
        return usage();
    return run_verb(argc - 1, argv + 1, shell);
}
