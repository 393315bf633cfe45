/*
 * The pieces of assay-box. One program, four roles, each forked from the one before:
 *
 *   starter  one per slot and worker: waits for "open", forks keepers (keeper_main.c)
 *   keeper   one per box: the tree, then one init per command (keeper.c, keeper_tree.c)
 *   init     PID 1 of one command: files, reaping, the verdict how it ended (keeper_init.c)
 *   payload  gives up every privilege, then becomes the command (keeper_payload.c)
 */
#pragma once

#include "sandbox/spec.h"

#include <stdbool.h>
#include <sys/types.h>

#define KEEPER_SOCKET     3     /* the starter's socket to the library */
#define KEEPER_PROGRAM    4     /* the sealed program, closed at once */
#define KEEPER_INIT_ID    65533 /* the id init takes in a range map: never the payload's */
#define KEEPER_NOBODY_ID  65534
#define KEEPER_EXEC_STAGE "exec"

/* Why something failed: the first failure stays. */
typedef struct Fail {
    int err;
    char what[SPEC_WHAT_MAX];
} Fail;

/* Records errno and WHAT (with DETAIL, which may be NULL) and returns -1. */
int fail(Fail *failed, const char *what, const char *detail);

/* Names below /proc that init hides, and those that it makes read-only; the same for every box. */
typedef struct ProcMasks {
    int n_hidden, n_covered;
    const char *hidden[32], *covered[8];
    bool is_dir[32]; /* of hidden */
} ProcMasks;

/* Fills the table from this host's /proc. */
void keeper_choose_masks(ProcMasks *masks);

/* One open box, as the keeper sees it. */
typedef struct Keeper {
    int sock;
    SpecOpen open;
    uint32_t layers; /* BoxLayer bits that are on */
    dev_t proc_dev;  /* of the tree's own /proc, below those of commands */
    int copy_fd;     /* the directory with "work", "tmp", "home"; only in degraded mode, else -1 */
    const ProcMasks *masks;
} Keeper;

/* Where no cgroup counts, or no pid namespace kills, init does: it samples, and SIGTERM asks it to
 * end the command and report. */
#define KEEPER_INIT_WATCHES (SPEC_OPEN_SAMPLE | SPEC_OPEN_DEGRADED)

/* What init tells the keeper when the command has ended; zero when init was killed. */
typedef struct InitReport {
    uint32_t magic;
    int32_t wait_status, start_err;
    uint32_t start_failed, leftover, sampled_oom, sampled_cpu;
    uint64_t peak_bytes;
    char what[SPEC_WHAT_MAX];
} InitReport;
#define INIT_REPORT_MAGIC 0x54494e49u

/* The descriptors of one command; -1 where absent. */
typedef struct ExecFds {
    int in, out, err, report, pty;
} ExecFds;

/* How many descriptors an open request carries. */
uint32_t keeper_open_fds(const SpecOpen *open);

/* Enters its namespaces, waits for one spec on `spec_sock` (flags: those that matter before it is
 * known), then serves that box until its peer closes. Never returns. */
void keeper_serve(int spec_sock, uint32_t flags, int maps_ready_fd, const ProcMasks *masks)
    __attribute__((noreturn));

/* The tmpfs that everything is built on; then the tree itself, and into it. */
int keeper_tree_base(uint32_t flags, Fail *failed);
int keeper_tree_build(Keeper *keeper, const int *fds, Fail *failed);

/* The skeleton: what every box of these flags has, then what this one needs. */
int keeper_skeleton_base(uint32_t flags, Fail *failed);
int keeper_skeleton_box(const SpecOpen *open, Fail *failed);

/* Host directories below /etc that programs of /usr are useless without, shown through overlays;
 * the first always, the others where the host's network is used, that is, for builds. */
extern const char *const keeper_etc_dirs[];

/* PID 1: never returns. */
void keeper_init(const Keeper *keeper, const SpecExec *exec, const ExecFds *fds)
    __attribute__((noreturn));

/* Empties the bounding and ambient sets and locks the securebits, for this process and all that it
 * forks: what is held stays, nothing can be gained by execve, ids may be changed at no price. */
int keeper_lock_capabilities(Fail *failed);

/* Becomes the command; on failure writes an InitReport-style error to `error_fd` and exits. */
void keeper_payload(const Keeper *keeper, const SpecExec *exec, const ExecFds *fds, int error_fd)
    __attribute__((noreturn));

/* The ids of payloads as this process has to name them: inside ids, or in degraded mode, where
 * there is no map, the host's (root never stays root; an ordinary user stays itself). */
static inline uint32_t keeper_uid(const SpecOpen *open)
{
    return open->flags & SPEC_OPEN_DEGRADED ? open->uids.lines[0][1] : open->uid;
}
static inline uint32_t keeper_gid(const SpecOpen *open)
{
    return open->flags & SPEC_OPEN_DEGRADED ? open->gids.lines[0][1] : open->gid;
}

/* The command's processes: how many, their proportional memory, their time, their end
 * (keeper_procs.c). */
uint32_t keeper_procs_count(const Keeper *keeper);
uint64_t keeper_procs_memory(const Keeper *keeper);
/* User and system time of those alive. */
uint64_t keeper_procs_cpu_ms(const Keeper *keeper);
void keeper_procs_kill(const Keeper *keeper);

/* A file written by a small helper: whole text to PATH. -1 with errno. */
int keeper_write_text(const char *path, const char *text);

/* Sends bytes and descriptors; a reply with up to two descriptors (-1: none). */
int keeper_send(int sock, const void *bytes, size_t len, const int *fds, int n_fds);
int keeper_reply(int sock, const SpecReply *reply, int fd_a, int fd_b);

/* One received request: its bytes and the descriptors that came with it. */
typedef struct Request {
    const void *bytes;
    size_t len;
    int fds[SPEC_FDS_MAX], n_fds;
    bool is_mapped; /* bytes are a mapping of a memfd, else the message itself */
} Request;

/* Waits for a request. -1 at the end of the stream or at malformed traffic. A small one lies in
 * `buffer` (SPEC_INLINE_MAX bytes), which must outlive it. */
int keeper_receive(int sock, uint8_t *buffer, Request *ret_request);
void keeper_request_free(Request *request);
