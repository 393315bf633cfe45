/*
 * Words for the enums of box.h, and its defaults.
 *
 * Invariant: a value's word never changes; it is stored and sent.
 */
#include "sandbox/box.h"

const char *box_outcome_str(BoxOutcome outcome)
{
    static const char *const words[] = {"none",      "exited",     "signaled",      "timed_out",
                                        "cpu_limit", "idle_limit", "out_of_memory", "output_limit",
                                        "disk_full", "cancelled",  "start_error"};
    return (gsize)outcome < G_N_ELEMENTS(words) ? words[outcome] : "none";
}

const char *box_layer_str(BoxLayer layer)
{
    static const char *const words[] = {"user",       "mount",   "pid",       "net",
                                        "ipc",        "uts",     "cgroup_ns", "time",
                                        "pivot_root", "overlay", "caps",      "no_new_privs",
                                        "landlock",   "seccomp", "rlimits",   "cgroup"};
    for (gsize i = 0; i < G_N_ELEMENTS(words); i++)
        if ((guint)layer == 1u << i)
            return words[i];
    return "unknown";
}

const char *box_by_str(BoxBy by)
{
    static const char *const words[] = {"nobody",  "cgroup2", "cgroup1", "rlimit",  "tmpfs",
                                        "sampler", "timer",   "rusage",  "affinity"};
    return (gsize)by < G_N_ELEMENTS(words) ? words[by] : "nobody";
}

BoxLimits box_limits_default(void)
{
    const guint64 mib = 1 << 20;
    return (BoxLimits){
        .wall_ms = 30 * 60 * 1000,
        .mem_bytes = 4096 * mib,
        .disk_bytes = 2048 * mib,
        .inodes = 1 << 20,
        .tmp_bytes = 1024 * mib,
        .file_bytes = 2048 * mib,
        .pids = 512,
        .nofile = 4096,
        .stack_bytes = 8 * mib,
        .output_bytes_keep = 16 * mib,
        .output_bytes_kill = 256 * mib,
    };
}

#define ENVP(home)                                                                                 \
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" home,             \
        "LANG=C.UTF-8", "TZ=UTC", "TERM=dumb", "COLUMNS=80", "PYTHONHASHSEED=0",                   \
        "PYTHONDONTWRITEBYTECODE=1", "PIP_NO_INPUT=1", "GIT_TERMINAL_PROMPT=0",                    \
        "GIT_CONFIG_NOSYSTEM=1", NULL

const char *const *box_envp_default(guint uid)
{
    static const char *const root[] = {ENVP("/root")}, *const other[] = {ENVP("/home/box")};
    return uid == 0 ? root : other;
}

char **box_envp_proxied(const char *const *envp)
{
    static const char *const names[] = {"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"};
    char **copy = g_strdupv((char **)(gsize)envp);
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        copy = g_environ_setenv(copy, names[i], BOX_PROXY_URL, TRUE);
    copy = g_environ_setenv(copy, "no_proxy", "localhost,127.0.0.1,::1", TRUE);
    return g_environ_setenv(copy, "NO_PROXY", "localhost,127.0.0.1,::1", TRUE);
}

void box_result_clear(BoxResult *result)
{
    g_clear_pointer(&result->out, g_bytes_unref);
    g_clear_pointer(&result->err, g_bytes_unref);
}
