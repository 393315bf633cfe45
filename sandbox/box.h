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
 * process of one command survives into the next, unless it says so. box_open + box_exec + box_close
 * is "one-shot"; box_reset makes an open box as good as new. box_snapshot freezes what was written:
 * any number of boxes can start from it (spec.snapshot), and box_rollback returns to it.
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
    guint64 disk_bytes; /* what is written to root and workspace, snapshots included */
    guint64 inodes;     /* likewise */
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

typedef struct BoxSnapshot BoxSnapshot;

typedef struct BoxSpec {
    /* Root tree: directories that together hold a whole root file system, topmost first; none:
     * the host's /usr, /bin, /lib* read-only and a small generated /etc. */
    const int *root_fds;
    gsize n_root;
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
    const BoxSnapshot
        *snapshot; /* start from what it holds; of a box with the same layers and ids */

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
    gboolean merge;  /* stdout and stderr through one pipe, in order, into result.out */
    guint64 wall_ms; /* 0: the box's limit; else the smaller of both */
    int tee_fd;      /* > 0: output is also written there as it arrives (live logs) */
    int cancel_fd;   /* > 0: readable means cancel */

    gboolean stdin_open;      /* more input comes by box_run_write */
    gboolean keep_background; /* processes it leaves live until the box is closed, reset or rolled
                               * back; a limit then ends this command's session only */
    gboolean terminal;        /* stdio is a terminal of the box's own; implies merge */
    guint rows, cols;         /* of it; 0: 24 x 80 is for the program to assume */
    void (*on_output)(gpointer data, gboolean is_err, const void *bytes, gsize len);
    gpointer on_output_data; /* called as output arrives */
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

/* The same for a main loop: start, wait for the descriptors, step until it is done, finish. What
 * `command` points to must live until it is finished. Several may run at once; limits and counters
 * are the box's, not each command's. */
typedef struct BoxRun BoxRun;
#define BOX_RUN_FDS 6
BoxRun *box_start(Box *box, const BoxCommand *command, GError **error);
/* What to wait for (fd -1: nothing), and for how long at most. */
void box_run_poll(const BoxRun *run, GPollFD ret_fds[BOX_RUN_FDS], int *ret_wait_ms);
/* Does what can be done without waiting. FALSE: our machine failed; finish it. */
gboolean box_run_step(BoxRun *run, GError **error);
gboolean box_run_is_done(const BoxRun *run);
/* Input for stdin_open or a terminal; at most 16 MiB wait. */
gboolean box_run_write(BoxRun *run, const void *data, gsize len, GError **error);
void box_run_end_input(BoxRun *run);
/* Bytes of input that the command has not read yet; -1: it reads no more. */
gssize box_run_waiting(const BoxRun *run);
void box_run_resize(BoxRun *run, guint rows, guint cols);
void box_run_cancel(BoxRun *run);
/* Waits for its end and frees it, whatever it returns. */
gboolean box_run_finish(BoxRun *run, BoxResult *ret_result, GError **error);

/* box_exec on our own terminal: keys go in, output comes out as it is written. */
gboolean box_exec_terminal(Box *box, const BoxCommand *command, BoxResult *ret_result,
                           GError **error);

/* Back to what the box was when it was opened: kept processes end, what was written is gone, /tmp
 * and terminals are fresh, later commands have a new network namespace, or with BOX_NET_PROXY the
 * same one. */
gboolean box_reset(Box *box, GError **error);

/* Freezes what the box has written outside /tmp, /run and /dev; the box goes on over it. Processes
 * that were kept go on too: they are stopped for the time of a copy. Unsupported where the caller
 * gave uppers, without namespaces, and before Linux 6.15. */
BoxSnapshot *box_snapshot(Box *box, GError **error);
BoxSnapshot *box_snapshot_ref(BoxSnapshot *snapshot);
void box_snapshot_unref(BoxSnapshot *snapshot);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BoxSnapshot, box_snapshot_unref)
/* Bytes it holds in memory. */
guint64 box_snapshot_bytes(const BoxSnapshot *snapshot);

/* As box_reset, to that state. */
gboolean box_rollback(Box *box, const BoxSnapshot *snapshot, GError **error);

/* Files from outside, by descriptor only: no link is followed, nothing but regular files is opened.
 * Paths are absolute inside, or relative to work_path. Errors: NOT_FOUND, NOT_ALLOWED (a link on
 * the way, not a regular file, not permitted), LIMIT, INPUT (not a normal path). */
typedef enum BoxFileKind {
    BOX_FILE_OTHER = 0, /* FIFO, socket, device */
    BOX_FILE_REGULAR = 1,
    BOX_FILE_DIR = 2,
    BOX_FILE_SYMLINK = 3,
} BoxFileKind;
typedef struct BoxFileInfo {
    char *name; /* last component, any bytes */
    BoxFileKind kind;
    guint mode; /* permission bits */
    guint64 size;
    gint64 mtime_ns;
} BoxFileInfo;
void box_file_info_free(BoxFileInfo *info);
GBytes *box_file_read(const Box *box, const char *path, gsize len_max, GError **error);
/* Replaces the file, whole or not at all, as the box's user would; its directory must exist. */
gboolean box_file_write(const Box *box, const char *path, const void *data, gsize len, guint mode,
                        GError **error);
BoxFileInfo *box_file_stat(const Box *box, const char *path, GError **error);
/* The entries of a directory, sorted by name: BoxFileInfo. More than `n_max` is LIMIT. */
GPtrArray *box_file_list(const Box *box, const char *path, guint n_max, GError **error);

/* What differs in the workspace from its layers, directory by directory, names in order; read from
 * the writable layer, so it costs what was changed. Directories are not listed, nor files changed
 * back. */
typedef struct BoxSide {
    guint mode;   /* as in stat; 0: absent */
    GBytes *data; /* of a file, or a link's target */
} BoxSide;
typedef struct BoxChange {
    const char *path; /* relative to work_path, any bytes */
    BoxSide before, after;
} BoxChange;
typedef gboolean (*BoxChangeFunc)(const BoxChange *change, gpointer data, GError **error);
/* LIMIT when there are more than `n_max` changes or they hold more than `bytes_max`. */
gboolean box_changes(const Box *box, guint n_max, guint64 bytes_max, BoxChangeFunc fn,
                     gpointer data, GError **error);

/* BoxLayer bits that are on. */
guint box_enforced(const Box *box);

/* What is on, who enforces each limit, what is missing and why:
 * {"mode":"namespaces|landlock","layers":[...],"missing":[{"layer","why"}],
 *  "limits":{"memory":"cgroup1",...},
 *  "notes":{"rename_dir":"exdev","remove_dir":"ok|eio","ids":"range",...}} */
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
