/*
 * up, down, status, doctor, version.
 *
 * Invariant: a daemon is started with posix_spawn in its own session and is known by the pid that
 * it reports over its own socket; no other process is ever signalled.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "env/backend.h"
#include "env/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <poll.h>

extern char **environ;

#define STOP_WAIT_MS   90000
#define STOP_SECOND_MS 200

gboolean cli_daemon_answers(Cli *cli)
{
    g_clear_pointer(&cli->client, client_free);
    cli->client = client_new(config_text(cli->config, CONFIG_SOCKET));
    g_autoptr(Answer) answer = client_call(cli->client, "GET", "/_ping", NULL, NULL);
    return answer != NULL && answer->status == 200;
}

/* assayd beside this program, or in ../sbin of an installation. */
static char *assayd_path(void)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = g_path_get_dirname(self != NULL ? self : "./assay");
    char *beside = g_build_filename(dir, "assayd", NULL);
    if (g_file_test(beside, G_FILE_TEST_IS_EXECUTABLE))
        return beside;
    g_free(beside);
    return g_build_filename(dir, "..", "sbin", "assayd", NULL);
}

/* Every value that was given explicitly, as flags. */
static GPtrArray *assayd_argv(Cli *cli, const char *program)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(argv, g_strdup(program));
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        const char *value = config_text(cli->config, (ConfigKey)i);
        const char *origin = config_origin(cli->config, (ConfigKey)i);
        if (strcmp(origin, "default") == 0 && i != CONFIG_STATE && i != CONFIG_SOCKET)
            continue;
        g_autofree char *name = g_strdelimit(g_strdup(config_infos[i].name), "_", '-');
        g_ptr_array_add(argv, g_strdup_printf("--%s=%s", name, value));
    }
    g_ptr_array_add(argv, NULL);
    return argv;
}

static gboolean spawn_daemon(Cli *cli, int in_fd, int out_fd, int log_fd, pid_t *ret_pid,
                             GError **error)
{
    g_autofree char *program = assayd_path();
    g_autoptr(GPtrArray) argv = assayd_argv(cli, program);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    if (in_fd >= 0) {
        g_ptr_array_insert(argv, 1, g_strdup("--until-eof"));
        posix_spawn_file_actions_adddup2(&actions, in_fd, 0);
    } else {
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    }
    posix_spawn_file_actions_adddup2(&actions, out_fd, 1);
    posix_spawn_file_actions_adddup2(&actions, log_fd, 2);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
    int rc = posix_spawn(ret_pid, program, &actions, &attributes, (char **)argv->pdata, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return rc == 0 || error_set_errno(error, rc, "start %s", program);
}

/* The end of the log, when the daemon did not start. */
static gboolean start_failed(const char *log_path, GError **error)
{
    g_autoptr(GBytes) text = file_read(log_path, 16u * 1024 * 1024, NULL);
    const char *last = "";
    g_auto(GStrv) lines = NULL;
    if (text != NULL) {
        lines = g_strsplit(g_bytes_get_data(text, NULL), "\n", -1);
        for (guint i = 0; lines[i] != NULL; i++) {
            if (lines[i][0] != '\0')
                last = lines[i];
        }
    }
    return error_set(error, ASSAY_ERROR_UNSUPPORTED, "the daemon did not start: %s (log: %s)", last,
                     log_path);
}

/* The reading end of a pipe whose writing end lives exactly as long as this process: a private
 * daemon sees its end and goes, however we end. */
static gboolean life_pipe(int *ret_read, GError **error)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "pipe");
    *ret_read = fds[0];
    return TRUE;
}

gboolean cli_daemon_start(Cli *cli, gboolean private, GError **error)
{
    const char *state = config_text(cli->config, CONFIG_STATE);
    if (g_mkdir_with_parents(state, 0700) < 0)
        return error_set_errno(error, errno, "make %s", state);
    g_autofree char *log_path = g_build_filename(state, "assayd.log", NULL);
    AUTO_FD log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return error_set_errno(error, errno, "open %s", log_path);
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "pipe");
    AUTO_FD ready = pipe_fds[0];
    AUTO_FD out = pipe_fds[1];
    pid_t pid = 0;
    AUTO_FD life = -1;
    if (private && !life_pipe(&life, error))
        return FALSE;
    if (!spawn_daemon(cli, life, out, log_fd, &pid, error))
        return FALSE;
    close(fd_take(&out));
    char line[6] = {0};
    gsize n = 0;
    while (n < 5) { /* "ready", or the end when it died */
        ssize_t got = read(ready, line + n, 5 - n);
        if (got == 0 || (got < 0 && errno != EINTR))
            break;
        n += got > 0 ? (gsize)got : 0;
    }
    if (strcmp(line, "ready") != 0 || !cli_daemon_answers(cli))
        return start_failed(log_path, error);
    if (!private)
        cli_say(cli, "Started assayd (pid %d). Socket %s, log %s", (int)pid,
                config_text(cli->config, CONFIG_SOCKET), log_path);
    return TRUE;
}

gboolean cli_daemon_stop(Cli *cli, gboolean now, GError **error)
{
    g_autoptr(json_t) info = client_json(cli->client, "GET", "/v1/info", NULL, error);
    if (info == NULL)
        return FALSE;
    pid_t pid = (pid_t)cli_json_int(info, "pid");
    AUTO_FD pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pid <= 1 || pidfd < 0)
        return error_set_errno(error, errno, "pid %d", (int)pid);
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) < 0)
        return error_set_errno(error, errno, "stop pid %d", (int)pid);
    struct pollfd gone = {.fd = pidfd, .events = POLLIN};
    /* The second signal does not drain; it must not merge with the first. */
    if (now && poll(&gone, 1, STOP_SECOND_MS) == 0)
        syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
    if (poll(&gone, 1, STOP_WAIT_MS) != 1)
        return error_set(error, ASSAY_ERROR_SYSTEM, "pid %d is still draining", (int)pid);
    return TRUE;
}

int cli_up(Cli *cli)
{
    GError *error = NULL;
    if (cli_daemon_answers(cli)) {
        cli_say(cli, "A daemon answers already on %s", client_socket(cli->client));
        return CLI_OK;
    }
    return cli_daemon_start(cli, FALSE, &error) ? CLI_OK : cli_error(cli, error, "assay doctor");
}

int cli_down(Cli *cli)
{
    GError *error = NULL;
    if (!cli_daemon_answers(cli)) {
        cli_say(cli, "No daemon answers on %s", client_socket(cli->client));
        return CLI_OK;
    }
    if (!cli_daemon_stop(cli, FALSE, &error))
        return cli_error(cli, error, NULL);
    cli_say(cli, "Stopped.");
    return CLI_OK;
}

int cli_status(Cli *cli)
{
    GError *error = NULL;
    if (cli_has(cli, "socket-path")) {
        puts(config_text(cli->config, CONFIG_SOCKET));
        return CLI_OK;
    }
    g_autoptr(json_t) info = client_json(cli->client, "GET", "/v1/info", NULL, &error);
    if (info == NULL)
        return cli_error(cli, error, NULL);
    if (cli->json) {
        cli_print_json(info);
        return CLI_OK;
    }
    const json_t *slots = json_object_get(info, "slots");
    const json_t *grades = json_object_get(info, "grades");
    const json_t *disk = json_object_get(info, "disk");
    printf("daemon   pid %lld on %s%s\n", (long long)cli_json_int(info, "pid"),
           cli_json_str(info, "socket"),
           json_is_true(json_object_get(info, "draining")) ? ", draining" : "");
    printf("state    %s, %lld GiB free\n", cli_json_str(info, "state_dir"),
           (long long)(cli_json_int(disk, "free_bytes") >> 30));
    printf("slots    %lld of %lld busy\n", (long long)cli_json_int(slots, "used"),
           (long long)cli_json_int(slots, "total"));
    printf("grades   %lld queued, %lld running, %lld done, %lld failed\n",
           (long long)cli_json_int(grades, "queued"), (long long)cli_json_int(grades, "running"),
           (long long)cli_json_int(grades, "done"), (long long)cli_json_int(grades, "failed"));
    printf("tasks    %lld\n", (long long)cli_json_int(info, "tasks_count"));
    return CLI_OK;
}

int cli_doctor(Cli *cli)
{
    const char *state = config_text(cli->config, CONFIG_STATE);
    g_autofree char *parent = g_strdup(state);
    while (!g_file_test(parent, G_FILE_TEST_IS_DIR)) {
        char *up = g_path_get_dirname(parent);
        g_free(parent);
        parent = up;
    }
    g_autoptr(json_t) report = doctor_json(parent);
    json_t *ops = backend_check();
    json_int_t failures =
        cli_json_int(report, "failures") + (strcmp(cli_json_str(ops, "status"), "fail") == 0);
    json_array_append_new(json_object_get(report, "checks"), ops);
    json_array_append_new(json_object_get(report, "checks"), backend_ranks_check());
    json_object_set_new(report, "failures", json_integer(failures));
    if (cli->json) {
        cli_print_json(report);
        return failures > 0 ? CLI_GATE : CLI_OK;
    }
    const json_t *checks = json_object_get(report, "checks");
    for (gsize i = 0; i < json_array_size(checks); i++) {
        const json_t *check = json_array_get(checks, i);
        const char *status = cli_json_str(check, "status");
        gboolean fail = strcmp(status, "fail") == 0;
        printf("%-14s %-5s %s\n", cli_json_str(check, "id"), fail ? "FAIL" : status,
               cli_json_str(check, "detail"));
        const json_t *fixes = json_object_get(check, "fix");
        for (gsize k = 0; k < json_array_size(fixes) && strcmp(status, "ok") != 0; k++)
            printf("%-20s fix: %s\n", "", json_string_value(json_array_get(fixes, k)));
    }
    cli_say(cli, "\n%lld failures, %lld warnings", (long long)failures,
            (long long)cli_json_int(report, "warnings"));
    return failures > 0 ? CLI_GATE : CLI_OK;
}

int cli_version(Cli *cli)
{
    if (!cli->json) {
        printf("assay %s\n", ASSAY_VERSION);
        return CLI_OK;
    }
    g_autoptr(json_t) version = client_json(cli->client, "GET", "/version", NULL, NULL);
    g_autoptr(json_t) both = json_pack("{s:s,s:O?}", "version", ASSAY_VERSION, "daemon", version);
    cli_print_json(both);
    return CLI_OK;
}
