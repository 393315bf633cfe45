/*
 * assayd: the daemon.
 *
 * 1. Standard output carries one line, "ready SOCKET", when it can be talked to; all else is on
 *    standard error.
 * 2. SIGTERM and SIGINT drain; a second one stops at once. Exit 0 after a stop, 2 for bad
 *    configuration, 1 when it cannot start.
 */
#include "base/error.h"
#include "env/config.h"
#include "env/service.h"
#include "sandbox/box.h"

#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define EXIT_BAD_CONFIG 2
#define FILES_WANTED    65536

static gboolean on_stop_signal(gpointer user_data)
{
    service_stop(user_data);
    return G_SOURCE_CONTINUE;
}

/* "<level> time message" on standard error; one write per line. */
static GLogWriterOutput log_line(GLogLevelFlags level, const GLogField *fields, gsize n_fields,
                                 gpointer user_data)
{
    (void)user_data;
    const char *message = "";
    for (gsize i = 0; i < n_fields; i++) {
        if (strcmp(fields[i].key, "MESSAGE") == 0)
            message = fields[i].value;
    }
    if ((level & (G_LOG_LEVEL_DEBUG | G_LOG_LEVEL_INFO)) != 0)
        return G_LOG_WRITER_HANDLED;
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y-%m-%dT%H:%M:%SZ");
    gboolean loud = (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING)) != 0;
    fprintf(stderr, "%s assayd: %s%s\n", time, loud ? "warning: " : "", message);
    return G_LOG_WRITER_HANDLED;
}

static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < FILES_WANTED) {
        limit.rlim_cur = MIN(limit.rlim_max, FILES_WANTED);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* -1: go on; else the exit status. */
static int answer_flags(int argc, char **argv)
{
    if (argc < 2)
        return -1;
    if (strcmp(argv[1], "--help") == 0) {
        g_autofree char *help = config_help();
        printf("usage: assayd [OPTION...]\n\n%s", help);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("assayd %s\n", ASSAY_VERSION);
        return 0;
    }
    fprintf(stderr, "assayd: unknown argument %s\n  try: assayd --help\n", argv[1]);
    return EXIT_BAD_CONFIG;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_log_set_writer_func(log_line, NULL, NULL);
    signal(SIGPIPE, SIG_IGN);
    Config *config = config_load(&argc, &argv, &error);
    if (config == NULL) {
        fprintf(stderr, "assayd: %s\n", error->message);
        return EXIT_BAD_CONFIG;
    }
    int status = answer_flags(argc, argv);
    if (status >= 0) {
        config_free(config);
        return status;
    }
    raise_file_limit();
    Service *service = service_open(config, &error);
    if (service == NULL) {
        fprintf(stderr, "assayd: %s\n", error->message);
        return 1;
    }
    guint n_stale = box_sweep_stale();
    if (n_stale > 0)
        g_message("removed %u cgroups of workers that are gone", n_stale);
    g_unix_signal_add(SIGTERM, on_stop_signal, service);
    g_unix_signal_add(SIGINT, on_stop_signal, service);
    printf("ready %s\n", config_text(config, CONFIG_SOCKET));
    fflush(stdout);
    g_message("listening on %s, state in %s, %s", config_text(config, CONFIG_SOCKET),
              config_text(config, CONFIG_STATE), store_engine_version());
    service_run(service);
    g_message("stopped");
    service_close(service);
    while (waitpid(-1, NULL, 0) > 0) /* killed workers, so that what they held is free */
        continue;
    box_sweep_stale();
    return 0;
}
