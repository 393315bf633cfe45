/*
 * One live box: a private tree, private namespaces, a filter, limits; commands run one by one.
 *
 *     BoxSpec spec = {.work_path = "/testbed", .limits = box_limits_default()};
 *     g_autoptr(Box) box = box_open(&spec, error);
 *     BoxCommand command = {.argv = (const char *[]){"/bin/sh", "-c", "make test", NULL}};
 *     g_auto(BoxResult) result = {0};
 *     if (!box_exec(box, &command, &result, error)) ...          our machine failed
 *     result.outcome == BOX_EXITED && result.exit_code == 0      a value: what the command did
 *
 * The writable layers live as long as the Box: what one command writes, the next one sees; no
 * process of one command survives into the next. box_open + box_exec + box_close is "one-shot".
 */
#pragma once

#include "sandbox/layer.h"

#include <glib.h>

/* How a command ended. Stored and sent: never renumber. Zero must not look like success. */
typedef enum BoxOutcome {
    BOX_NONE = 0,       /* never ran */
    BOX_EXITED = 1,     /* exit_code is valid */
    BOX_SIGNALED = 2,   /* signal is valid */
    BOX_TIMED_OUT = 3,  /* wall limit */
    BOX_CPU_LIMIT = 4,  /* cpu-time limit */
    BOX_IDLE_LIMIT = 5, /* no output for idle_ms */
    BOX_OUT_OF_MEMORY = 6,
    BOX_OUTPUT_LIMIT = 7, /* wrote more than output_bytes_kill */
    BOX_DISK_FULL = 8,    /* reserved: writes failed with ENOSPC is the command's own business */
    BOX_CANCELLED = 9,
    BOX_START_ERROR = 10, /* the command could not be started (ENOENT, EACCES): start_errno */
} BoxOutcome;
const char *box_outcome_str(BoxOutcome outcome); /* "exited", "timed_out", ... */

const char *box_layer_str(BoxLayer layer); /* "user", "mount", ... */

/* Who enforces a limit, or where a number comes from. */
typedef enum BoxBy {
    BOX_BY_NOBODY = 0,
    BOX_BY_CGROUP2 = 1,
    BOX_BY_CGROUP1 = 2,
    BOX_BY_RLIMIT = 3,
    BOX_BY_TMPFS = 4,
    BOX_BY_SAMPLER = 5,
    BOX_BY_TIMER = 6,
    BOX_BY_RUSAGE = 7,
    BOX_BY_AFFINITY = 8, /* whole CPUs, until a command asks for others: it may */
} BoxBy;
const char *box_by_str(BoxBy by); /* "nobody", "cgroup2", ... */

typedef enum BoxNet {
    BOX_NET_NONE = 0,  /* a network namespace with loopback, nothing else */
    BOX_NET_HOST = 1,  /* the host's network: environment builds only, never grading */
    BOX_NET_PROXY = 2, /* as NONE, and an HTTP proxy on loopback that reaches what egress allows */
} BoxNet;

/* 0 = the default of box_limits_default() is NOT applied: 0 means "not limited". */
typedef struct BoxLimits {
    guint64 wall_ms;
    guint64 cpu_ms;
    guint64 idle_ms;
    guint64 cpu_milli;  /* at most so many thousandths of one CPU at a time */
    guint64 cpu_weight; /* share among busy boxes, 1..10000; 0: 100, as everybody */
    guint64 mem_bytes;
    guint64 swap_bytes; /* beyond mem_bytes; here 0 means none */
    guint64 disk_bytes; /* each tmpfs upper (root and workspace) */
    guint64 inodes;     /* each tmpfs upper */
    guint64 tmp_bytes;  /* /tmp, and /dev/shm */
    guint64 file_bytes; /* RLIMIT_FSIZE */
    guint64 pids;
    guint64 nofile;
    guint64 stack_bytes;
    guint64 output_bytes_keep; /* kept per command: first half and last half */
    guint64 output_bytes_kill; /* a command that writes more is ended */
} BoxLimits;
BoxLimits box_limits_default(void);

/* A host directory shown read-only at `path`; the descriptor is O_PATH or O_RDONLY, ours. */
typedef struct BoxMount {
    int dir_fd;
    const char *path;
} BoxMount;

/* A file the supervisor writes inside the box before a command, owned by the box user. Parents
 * are made. `path` is absolute, inside; a symlink on the way is an error. */
typedef struct BoxFile {
    const char *path;
    const void *data;
    gsize len;
    guint mode;
} BoxFile;

#define BOX_PROXY_URL "http://127.0.0.1:3128"

/* What BOX_NET_PROXY lets through: CONNECT, and plain GET, HEAD and POST, to names and ports of a
 * list. Addresses instead of names, and names that resolve to addresses that are not public, are
 * refused. It ends with the box. */
typedef struct BoxEgress {
    const char *const *allow; /* NULL-terminated: "pypi.org:443", "*.debian.org:80" */
    guint64 bytes_max;        /* both directions, for the life of the box; 0: not limited */
    guint head_ms, idle_ms;   /* to send a request; without a byte moved. 0: 10 s, 60 s */
    int log_fd;               /* > 0: one JSON line per request */
    /* For tests only: "name=address" lines that replace DNS, and loopback as a target. */
    const char *const *unsafe_hosts;
    gboolean unsafe_loopback;
} BoxEgress;

typedef struct BoxSpec {
    /* Root tree. root_fd < 0 or 0: the host's /usr, /bin, /lib* read-only and a small generated
     * /etc; else a directory that holds a whole root file system. */
    int root_fd;
    const int *layer_fds; /* root overlay lowers over that, topmost first */
    gsize n_layers;
    int root_upper_fd; /* > 0: a directory with "upper" and "work" that keeps what is written
                        * outside work_path, /tmp, /dev, /proc; else a tmpfs */
    /* Workspace. */
    const char *work_path; /* absolute, inside; NULL: "/work" */
    const int *work_fds;   /* workspace overlay lowers, topmost first; none: an empty directory */
    gsize n_work;
    int work_upper_fd;       /* as root_upper_fd */
    gboolean root_read_only; /* nothing outside work_path, /tmp and the like can be written */
    const BoxMount *mounts;
    gsize n_mounts;

    BoxNet net;
    BoxEgress egress;     /* of BOX_NET_PROXY */
    guint uid, gid;       /* inside ids of commands; never a host id 0, whatever they are */
    const char *hostname; /* NULL: "sandbox" */
    guint slot; /* 0..2045: picks the host id range and the cgroups; unique per live box */
    BoxLimits limits;
    guint require;           /* BoxLayer bits that must be on, else box_open fails */
    gboolean allow_degraded; /* permit the Landlock + seccomp + rlimits mode without namespaces */
} BoxSpec;

typedef struct BoxCommand {
    const char *const *argv; /* argv[0] is looked up inside, in envp's PATH */
    const char *const *envp; /* complete: nothing is inherited. NULL: box_envp_default() */
    const char *cwd;         /* inside; NULL: work_path */
    const BoxFile *files;
    gsize n_files;
    const void *stdin_data; /* NULL: /dev/null */
    gsize stdin_len;
    int stdin_fd;         /* > 0: what is read there is passed on, until its end; not stdin_data */
    gboolean merge;       /* stdout and stderr through one pipe, in order, into result.out */
    guint64 wall_ms;      /* 0: the box's limit; else the smaller of both */
    int tee_fd;           /* > 0: output is also written there as it arrives (live logs) */
    int tee_err_fd;       /* > 0: there goes standard error instead */
    int cancel_fd;        /* > 0: readable means cancel */
    gboolean interactive; /* stdio is ours (a terminal): `env shell`, `box shell` */
} BoxCommand;

typedef struct BoxResult {
    BoxOutcome outcome;
    int exit_code;
    int signal;
    int start_errno;
    GBytes *out, *err;            /* head and tail kept; err is empty when merged */
    guint64 out_bytes, err_bytes; /* all that was written */
    gboolean truncated;
    guint64 setup_us, wall_us, teardown_us;
    guint64 cpu_user_us, cpu_sys_us;
    guint64 mem_peak_bytes;
    guint32 oom_kills, pids_peak, leftover_procs;
    BoxBy cpu_by, mem_by; /* where those numbers come from */
} BoxResult;
void box_result_clear(BoxResult *result);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(BoxResult, box_result_clear)

typedef struct Box Box;

/* Makes the box. The first call ignores SIGPIPE in this process, if nobody handles it. NULL: our
 * machine failed, or `require` is not met (the message names what). Call it on a thread that
 * outlives the box: its helper dies with that thread. */
Box *box_open(const BoxSpec *spec, GError **error);

/* Runs one command to its end; afterwards no process of it lives. FALSE only when the box itself
 * failed: nothing the command does can cause that. Files left on tmpfs may use up the memory limit
 * so that not even the keeper can run: that command and all later ones are OUT_OF_MEMORY. */
gboolean box_exec(Box *box, const BoxCommand *command, BoxResult *ret_result, GError **error);

/* BoxLayer bits that are on. */
guint box_enforced(const Box *box);

/* What is on, who enforces each limit, what is missing and why:
 * {"mode":"namespaces|landlock","layers":[...],"missing":[{"layer","why"}],
 *  "limits":{"memory":"cgroup1",...},"notes":{"rename_dir":"exdev","ids":"range",...}} */
char *box_report_json(const Box *box);

/* Where the box's programs find PATH: PATH itself, except in the degraded mode, where what lies in
 * work_path or /tmp is in a copy elsewhere. For text that goes into scripts; cwd, the paths of
 * BoxFiles, and argv words that are such paths are translated by box_exec. g_free. */
char *box_path_inside(const Box *box, const char *path);

/* The same for a script: every work_path and "/tmp/" in the text. A plain copy with namespaces. */
char *box_text_inside(const Box *box, const char *text);

/* Kills everything, removes cgroup and mounts. NULL is nothing. */
void box_close(Box *box);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Box, box_close)

/* A fixed, complete environment for commands of that inside uid: PATH, HOME, LANG=C.UTF-8, TZ=UTC
 * ... NULL-terminated, static. */
const char *const *box_envp_default(guint uid);

/* ENVP with the proxy of BOX_NET_PROXY in it (http_proxy ...); what a NULL envp is in such a box.
 * g_strfreev. */
char **box_envp_proxied(const char *const *envp);

/* The owner (uid and gid) that trees on disk must have to be writable lowers of any box: an
 * unprivileged id of our range when we are root, else our own uid. */
guint box_store_uid(void);
guint box_store_gid(void);

/* The probe behind `assay doctor`: JSON {"checks":[{"id","status":"ok|warn|fail","detail",
 * "fix":[...]}]}. */
char *box_probe_json(void);

/* Ends the helper processes and removes the cgroups that this process keeps for its slots; every
 * Box must be closed. Also done at exit. A killed process leaves them to box_sweep_stale. */
void box_shutdown(void);

/* Removes what boxes of a dead daemon left: cgroups whose keeper is gone. Returns how many. */
guint box_sweep_stale(void);
