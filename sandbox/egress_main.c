/*
 * assay-egress: the proxy of one box, a process of its own without privileges.
 *
 * The listener it is given lies in the box's network; sockets to servers are made in the host's,
 * where this process is.
 *
 * Invariants:
 *   1. It gives up root before it accepts anything, can gain nothing, and is not traceable.
 *   2. It starts no process and opens no file but the resolver's.
 *   3. It ends when EGRESS_CONTROL does.
 *
 * Not here: judgement (egress_rules.c), connections (egress_proxy.c), starting it (egress.c).
 */
#include "sandbox/egress_proxy.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct Arguments {
    char **allow, **unsafe_hosts;
    gint64 uid, bytes_max, head_ms, idle_ms;
    gboolean unsafe_loopback;
} Arguments;

static gboolean parse(int argc, char **argv, Arguments *arguments, GError **error)
{
    const GOptionEntry entries[] = {
        {"allow", 0, 0, G_OPTION_ARG_STRING_ARRAY, &arguments->allow, NULL, NULL},
        {"uid", 0, 0, G_OPTION_ARG_INT64, &arguments->uid, NULL, NULL},
        {"bytes-max", 0, 0, G_OPTION_ARG_INT64, &arguments->bytes_max, NULL, NULL},
        {"head-ms", 0, 0, G_OPTION_ARG_INT64, &arguments->head_ms, NULL, NULL},
        {"idle-ms", 0, 0, G_OPTION_ARG_INT64, &arguments->idle_ms, NULL, NULL},
        {"unsafe-host", 0, 0, G_OPTION_ARG_STRING_ARRAY, &arguments->unsafe_hosts, NULL, NULL},
        {"unsafe-loopback", 0, 0, G_OPTION_ARG_NONE, &arguments->unsafe_loopback, NULL, NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    return g_option_context_parse(context, &argc, &argv, error);
}

static gboolean drop_privileges(uid_t uid, GError **error)
{
    struct rlimit none = {0, 0}, files = {4 * EGRESS_CONNECTIONS_MAX, 4 * EGRESS_CONNECTIONS_MAX};
    if (uid > 0 &&
        (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0))
        return error_set_errno(error, errno, "become uid %u", uid);
    if (geteuid() == 0)
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "the proxy does not run as root");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0 ||
        setrlimit(RLIMIT_CORE, &none) < 0 || setrlimit(RLIMIT_NOFILE, &files) < 0)
        return error_set_errno(error, errno, "give up privileges");
    return TRUE;
}

int main(int argc, char **argv)
{
    static EgressConfig config;
    Arguments arguments = {.head_ms = EGRESS_HEAD_MS, .idle_ms = EGRESS_IDLE_MS};
    g_autoptr(GError) error = NULL;
    signal(SIGPIPE, SIG_IGN);
    close(EGRESS_PROGRAM);
    prctl(PR_SET_NAME, "assay-egress"); /* it was started from a descriptor */
    if (!parse(argc, argv, &arguments, &error) || !drop_privileges((uid_t)arguments.uid, &error) ||
        (config.rules = egress_rules_new((const char *const *)arguments.allow, &error)) == NULL) {
        fprintf(stderr, "assay-egress: %s\n", error->message);
        return 2;
    }
    config.bytes_max = (guint64)arguments.bytes_max;
    config.head_ms = (guint)arguments.head_ms;
    config.idle_ms = (guint)arguments.idle_ms;
    config.unsafe_hosts = arguments.unsafe_hosts;
    config.unsafe_loopback = arguments.unsafe_loopback;
    config.log_fd = fcntl(EGRESS_LOG, F_GETFD) < 0 ? -1 : EGRESS_LOG;
    (void)fcntl(EGRESS_LISTENER, F_SETFL, O_NONBLOCK);
    if (write(EGRESS_CONTROL, "", 1) != 1)
        return 2;
    egress_serve(&config, EGRESS_LISTENER, EGRESS_CONTROL);
    _exit(0); /* threads may still talk: the box is gone */
}
