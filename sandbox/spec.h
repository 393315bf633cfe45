/*
 * What the library tells the keeper, and what the keeper answers: bytes, checked on both sides.
 *
 *     SpecWriter w = {.put = append, .ctx = array};   spec_put_open(&w, &open);
 *     if (!spec_get_open(bytes, len, &open)) ...      malformed: refused, nothing was started
 *
 * Small requests are one message, large ones travel in a memfd; replies are one fixed struct.
 * Decoding allocates nothing: strings point into the bytes, which must outlive the result.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPEC_VERSION     2u
#define SPEC_MAGIC_OPEN  0x4e504f41u /* "AOPN" */
#define SPEC_MAGIC_EXEC  0x43584541u /* "AEXC" */
#define SPEC_MAGIC_IDMAP 0x504d4441u /* "ADMP" */
#define SPEC_MAGIC_REPLY 0x504c5241u /* "ARLP" */
#define SPEC_MAGIC_MEMFD 0x44464d41u /* "AMFD": the request is in the first descriptor */
#define SPEC_MAGIC_TREE  0x45525441u /* "ATRE" */
#define SPEC_MAGIC_COPY  0x59504341u /* "ACPY" */
#define SPEC_MAGIC_ORDER 0x44524f41u /* "AORD" */

#define SPEC_INLINE_MAX (64u << 10)  /* up to here a request is the message itself, else a memfd */
#define SPEC_BYTES_MAX  (256u << 20) /* one request */
#define SPEC_LAYERS_MAX 60u          /* of each: root, layers over it, workspace layers */
#define SPEC_MOUNTS_MAX 32u
#define SPEC_GENS_MAX   32u /* generations below the one that is written */
#define SPEC_PATH_MAX   1024u
#define SPEC_ARGV_MAX   16384u
#define SPEC_ENVP_MAX   4096u
#define SPEC_FILES_MAX  1024u
#define SPEC_FILTER_MAX 4096u /* BPF instructions, the kernel's own limit */
#define SPEC_MAPS_MAX   8u
#define SPEC_FDS_MAX    250u /* descriptors in one message; the kernel's limit is 253 */
#define SPEC_PROXY_PORT 3128u

typedef enum SpecOpenFlag {
    SPEC_OPEN_HOST_ROOT = 1 << 0,  /* the root is the host's /usr; /etc is generated */
    SPEC_OPEN_NET_HOST = 1 << 1,   /* no network namespace */
    SPEC_OPEN_MOUNT_FDS = 1 << 2,  /* descriptors are detached mounts, ready to attach */
    SPEC_OPEN_ROOT_UPPER = 1 << 3, /* a descriptor for the root's upper follows */
    SPEC_OPEN_WORK_UPPER = 1 << 4,
    SPEC_OPEN_SAMPLE = 1 << 5,         /* no cgroup: init samples memory */
    SPEC_OPEN_DEGRADED = 1 << 6,       /* no namespaces: Landlock, filter, limits only */
    SPEC_OPEN_SETGROUPS = 1 << 7,      /* an id range is mapped: ids may be changed */
    SPEC_OPEN_CGROUP = 1 << 8,         /* the keeper is born in a cgroup v2 directory */
    SPEC_OPEN_ROOT_READ_ONLY = 1 << 9, /* the root and /usr overlays cannot be written */
    SPEC_OPEN_NET_PROXY = 1 << 16,     /* a listener inside is sent back before OPENED */
} SpecOpenFlag;

/* Lines of a uid_map or gid_map: inside, outside, count. */
typedef struct SpecMap {
    uint32_t n;
    uint32_t lines[SPEC_MAPS_MAX][3];
} SpecMap;

typedef struct SpecLimits {
    uint64_t cpu_ms, mem_bytes, disk_bytes, inodes, tmp_bytes, file_bytes, pids, nofile,
        stack_bytes;
    uint64_t cpus, cpu_first; /* commands may run on so many, from that one on; 0: on all */
} SpecLimits;

/* Descriptors that follow, in this order: the keeper's socket, the cgroup (if flagged), root
 * directories (at least one), layers, work layers, root upper, work upper, mounts, generations
 * (topmost first). */
typedef struct SpecOpen {
    uint32_t flags, uid, gid;
    uint32_t n_root, n_layers, n_work, n_mounts, n_gens;
    const char *work_path, *hostname;
    const char *mount_paths[SPEC_MOUNTS_MAX];
    SpecMap uids, gids;
    SpecLimits limits;
    const uint8_t *filter; /* struct sock_filter[], not aligned */
    uint32_t filter_len;   /* bytes */
} SpecOpen;

typedef struct SpecFile {
    const char *path;
    const uint8_t *data;
    uint32_t len, mode;
} SpecFile;

/* To the keeper of an open box: build the tree anew over these generations (their descriptors
 * follow, topmost first), with fresh /tmp and /dev/shm. */
typedef enum SpecTreeFlag {
    SPEC_TREE_NEW_NET = 1 << 0, /* later commands live in a network namespace of their own */
    SPEC_TREE_FREEZE = 1 << 1,  /* go on over what was written: /tmp and /dev/shm stay */
} SpecTreeFlag;
typedef struct SpecTree {
    uint32_t flags, n_gens;
    uint64_t disk_bytes, inodes; /* of the new generation */
} SpecTree;

/* Orders without arguments: STAGE to the keeper and the starter (which does not answer), the others
 * to the init of a command. */
typedef enum SpecOrder {
    SPEC_ORDER_NONE = 0,
    SPEC_ORDER_STAGE = 1,  /* get what comes next ready: an init, a keeper */
    SPEC_ORDER_END = 2,    /* kill the running command, not what earlier ones left */
    SPEC_ORDER_FREEZE = 3, /* stop every process; answered */
    SPEC_ORDER_THAW = 4,
} SpecOrder;

typedef enum SpecExecFlag {
    SPEC_EXEC_PTY = 1 << 0,  /* make a terminal inside; its master is sent back */
    SPEC_EXEC_KEEP = 1 << 1, /* what runs in the background lives on; init serves more commands */
} SpecExecFlag;

/* Descriptors that follow: stdin, stdout, stderr (none with PTY). The arrays are walked
 * with spec_next_*: they are not stored, so that nothing is allocated. */
typedef struct SpecExec {
    uint32_t flags, n_argv, n_envp, n_files;
    uint32_t rows, cols; /* of the terminal */
    const char *cwd;
    const uint8_t *rest, *end; /* argv, envp, files */
} SpecExec;

typedef enum SpecReplyKind {
    SPEC_REPLY_NONE = 0,
    SPEC_REPLY_FAILED = 1,    /* err, what */
    SPEC_REPLY_KEEPER = 2,    /* starter: the keeper's pidfd follows */
    SPEC_REPLY_IDMAP = 3,     /* starter: a user namespace descriptor follows */
    SPEC_REPLY_OPENED = 4,    /* keeper: layers that are on; SpecTreeFd; READY comes next */
    SPEC_REPLY_READY = 5,     /* keeper: the staged init's pidfd and its socket follow */
    SPEC_REPLY_DONE = 6,      /* init: how the command ended */
    SPEC_REPLY_TREE = 7,      /* keeper: SpecTreeFd; READY comes next */
    SPEC_REPLY_COPIED = 8,    /* keeper: a generation follows */
    SPEC_REPLY_TERMINAL = 9,  /* init: the terminal's master follows */
    SPEC_REPLY_FROZEN = 10,   /* init: every process is stopped */
    SPEC_REPLY_LISTENER = 11, /* keeper, before OPENED: the proxy's listener follows */
} SpecReplyKind;

/* Why a command did not start. */
typedef enum SpecStart {
    SPEC_START_OK = 0,
    SPEC_START_COMMAND = 1, /* its own doing, or that of what earlier ones left */
    SPEC_START_OURS = 2,    /* a step of ours failed */
} SpecStart;

/* What comes with a tree. */
typedef enum SpecTreeFd {
    SPEC_TREE_FD_ROOT,   /* the merged tree */
    SPEC_TREE_FD_GEN,    /* the written generation, to look into */
    SPEC_TREE_FD_FROZEN, /* the one that was written before, as a mount that can be cloned */
    SPEC_TREE_FDS,
} SpecTreeFd;

#define SPEC_FDS_OF_REPLY 4u
#define SPEC_WHAT_MAX     96u

typedef struct SpecReply {
    uint32_t magic, version, kind, layers;
    int32_t err;           /* errno: why we failed, or why the command did not start */
    int32_t wait_status;   /* of the command; meaningful when has_status */
    uint32_t has_status;   /* init lived to see the command's end */
    uint32_t start_failed; /* SpecStart */
    uint32_t leftover;     /* processes alive when the command's main process had ended */
    uint32_t sampled_oom;  /* the sampler ended the command */
    uint32_t sampled_cpu;  /* likewise, for its CPU time */
    uint32_t landlock_abi;
    uint32_t fd_mask; /* which of the reply's descriptors came: bit i, the i-th */
    uint64_t user_us, sys_us, peak_bytes;
    char what[SPEC_WHAT_MAX];
} SpecReply;

typedef struct SpecWriter {
    void (*put)(void *ctx, const void *data, size_t len);
    void *ctx;
} SpecWriter;

void spec_put_open(SpecWriter *writer, const SpecOpen *open);
void spec_put_idmap(SpecWriter *writer, const SpecMap *uids, const SpecMap *gids);
void spec_put_tree(SpecWriter *writer, const SpecTree *tree);
/* Merges these generations (their descriptors follow, topmost first) into a new one; none: copies
 * the one that is written. */
void spec_put_copy(SpecWriter *writer, uint32_t n_gens);
void spec_put_order(SpecWriter *writer, SpecOrder order);
/* The head of an exec request; then n_argv + n_envp strings, then n_files files. */
void spec_put_exec(SpecWriter *writer, const SpecExec *exec);
void spec_put_str(SpecWriter *writer, const char *text);
void spec_put_file(SpecWriter *writer, const SpecFile *file);

/* FALSE: not a well-formed request of this version; the result is unspecified. All strings are
 * NUL-terminated, without inner NULs; paths are absolute and normal (spec_path_ok). */
bool spec_get_open(const void *bytes, size_t len, SpecOpen *ret_open);
bool spec_get_idmap(const void *bytes, size_t len, SpecMap *ret_uids, SpecMap *ret_gids);
bool spec_get_tree(const void *bytes, size_t len, SpecTree *ret_tree);
bool spec_get_copy(const void *bytes, size_t len, uint32_t *ret_n_gens);
bool spec_get_order(const void *bytes, size_t len, SpecOrder *ret_order);
/* Also walks argv, envp and files to the last byte, so that the walk below cannot fail. */
bool spec_get_exec(const void *bytes, size_t len, SpecExec *ret_exec);
/* Walk `rest` in order: argv and envp strings, then files. False at a malformed item. */
bool spec_next_str(SpecExec *exec, const char **ret_text);
bool spec_next_file(SpecExec *exec, SpecFile *ret_file);

/* A reply of the right size, version and ranges; `what` is terminated. */
bool spec_reply_ok(SpecReply *reply, size_t len);

/* Absolute, no empty, "." or ".." component, no trailing slash, shorter than SPEC_PATH_MAX. */
bool spec_path_ok(const char *path);
