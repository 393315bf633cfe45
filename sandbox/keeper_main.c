/*
 * assay-box: the starter. Forks one keeper per box and writes its id maps.
 *
 * It exists because forking this 1 MB static program costs a tenth of a millisecond, while
 * executing it, or moving a new process into a version 1 cgroup, costs more than the rest of a
 * box together. It is spawned once per slot, put into the slot's cgroups by the library, and
 * everything it forks inherits them. For the same reason it keeps one spare keeper, whose
 * namespaces exist before they are asked for.
 *
 * Invariants:
 *   1. It holds no descriptor of a box after the fork, and no box process ever holds its socket.
 *   2. It reads nothing that a payload wrote: its only peer is the library.
 *   3. It dies with the library: the socket's end and the parent-death signal.
 *
 * Not here: anything inside a box (keeper.c and below).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static ProcMasks proc_masks;

static int write_map(pid_t pid, const char *name, const SpecMap *map)
{
    char path[64], text[SPEC_MAPS_MAX * 40];
    size_t len = 0;
    for (uint32_t i = 0; i < map->n; i++)
        len += (size_t)snprintf(text + len, sizeof text - len, "%u %u %u\n", map->lines[i][0],
                                map->lines[i][1], map->lines[i][2]);
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return keeper_write_text(path, text);
}

static int write_maps(pid_t pid, const SpecMap *uids, const SpecMap *gids, bool setgroups,
                      Fail *failed)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/setgroups", (int)pid);
    if (!setgroups && keeper_write_text(path, "deny") < 0)
        return fail(failed, "deny setgroups", NULL);
    if (write_map(pid, "uid_map", uids) < 0)
        return fail(failed, "write uid_map", NULL);
    if (write_map(pid, "gid_map", gids) < 0)
        return fail(failed, "write gid_map", NULL);
    return 0;
}

/* After commands, before us. Written by root this is a floor as well, which commands inherit. */
static void set_oom_score(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", (int)pid);
    keeper_write_text(path, "500");
}

static uint64_t open_flags(const SpecOpen *open)
{
    if (open->flags & SPEC_OPEN_DEGRADED)
        return KERNEL_CLONE_PIDFD;
    uint64_t flags = KERNEL_CLONE_PIDFD | KERNEL_CLONE_NEWUSER | KERNEL_CLONE_NEWNS |
                     KERNEL_CLONE_NEWUTS | KERNEL_CLONE_NEWPID;
    return open->flags & SPEC_OPEN_NET_HOST ? flags : flags | KERNEL_CLONE_NEWNET;
}

/* A keeper that has its namespaces and waits for its spec on `sock`. */
typedef struct Spare {
    pid_t pid; /* 0: none */
    int pidfd, sock;
    uint32_t flags; /* of the specs that it fits */
    SpecMap uids, gids;
} Spare;

#define SPARE_FLAGS                                                                                \
    (SPEC_OPEN_NET_HOST | SPEC_OPEN_NET_PROXY | SPEC_OPEN_SETGROUPS | SPEC_OPEN_DEGRADED |         \
     SPEC_OPEN_CGROUP | SPEC_OPEN_MOUNT_FDS | SPEC_OPEN_HOST_ROOT)

/* The last box: the next one of this slot will be like it. */
static struct {
    SpecOpen open; /* without its strings */
    int cgroup;
    unsigned n;
} last = {.cgroup = -1};

static Spare spare;

static void spare_drop(void)
{
    if (spare.pid == 0)
        return;
    kernel_pidfd_kill(spare.pidfd, SIGKILL);
    close(spare.pidfd);
    close(spare.sock);
    spare.pid = 0;
}

static bool same_map(const SpecMap *a, const SpecMap *b)
{
    return a->n == b->n && memcmp(a->lines, b->lines, a->n * sizeof a->lines[0]) == 0;
}

static bool spare_fits(const SpecOpen *open)
{
    return spare.pid != 0 && spare.flags == (open->flags & SPARE_FLAGS) &&
           same_map(&spare.uids, &open->uids) && same_map(&spare.gids, &open->gids);
}

/* The child gives up the request's descriptors: its own come with the request itself. A spare that
 * kept them would hold the socket of another box open, and nobody would see that keeper die. */
static int clone_keeper(const SpecOpen *open, int cgroup, const Request *request,
                        const int socks[2], const int ready[2])
{
    struct kernel_clone_args args = {.flags = open_flags(open),
                                     .pidfd = (uint64_t)(uintptr_t)&spare.pidfd,
                                     .exit_signal = SIGCHLD};
    if (open->flags & SPEC_OPEN_CGROUP) {
        args.flags |= KERNEL_CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup;
    }
    pid_t pid = kernel_clone3(&args);
    if (pid == 0) {
        close(KEEPER_SOCKET);
        close(socks[0]);
        close(ready[1]);
        for (size_t i = 0; i < (size_t)request->n_fds; i++)
            close(request->fds[i]);
        if (last.cgroup >= 0)
            close(last.cgroup);
        keeper_serve(socks[1], open->flags & SPARE_FLAGS, ready[0], &proc_masks);
    }
    return pid;
}

/* Makes the spare: a keeper for specs like this one. */
static int spare_make(const SpecOpen *open, int cgroup, const Request *request, Fail *failed)
{
    int ready[2], socks[2];
    if (pipe2(ready, O_CLOEXEC) < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) < 0)
        return fail(failed, "make the keeper's sockets", NULL);
    pid_t pid = clone_keeper(open, cgroup, request, socks, ready);
    int r = pid < 0 ? fail(failed, "make namespaces (clone3)", NULL) : 0;
    close(ready[0]);
    close(socks[1]);
    if (r == 0 && !(open->flags & SPEC_OPEN_DEGRADED))
        r = write_maps(pid, &open->uids, &open->gids, open->flags & SPEC_OPEN_SETGROUPS, failed);
    if (r == 0)
        set_oom_score(pid);
    if (r == 0 && write(ready[1], "", 1) != 1)
        r = fail(failed, "wake the keeper", NULL);
    close(ready[1]);
    if (pid < 0) {
        close(socks[0]);
        return r;
    }
    spare = (Spare){.pid = pid,
                    .pidfd = spare.pidfd,
                    .sock = socks[0],
                    .flags = open->flags & SPARE_FLAGS,
                    .uids = open->uids,
                    .gids = open->gids};
    if (r < 0)
        spare_drop();
    return r;
}

static int hand_over(const Request *request)
{
    return keeper_send(spare.sock, request->bytes, request->len, request->fds, request->n_fds);
}

static void remember(const SpecOpen *open, const Request *request)
{
    if (last.cgroup >= 0)
        close(last.cgroup);
    last.open = *open;
    last.cgroup = open->flags & SPEC_OPEN_CGROUP ? dup(request->fds[1]) : -1;
    last.n++;
}

/* Hands the request on to the spare, which becomes the box's keeper. */
static int start_keeper(int sock, const SpecOpen *open, const Request *request, Fail *failed)
{
    int cgroup = open->flags & SPEC_OPEN_CGROUP ? request->fds[1] : -1;
    if (!spare_fits(open)) {
        spare_drop();
        if (spare_make(open, cgroup, request, failed) < 0)
            return -1;
    }
    if (hand_over(request) < 0) { /* the spare had died: once more, with a new one */
        spare_drop();
        if (spare_make(open, cgroup, request, failed) < 0)
            return -1;
        if (hand_over(request) < 0)
            return fail(failed, "hand the spec to the keeper", NULL);
    }
    SpecReply reply = keeper_reply_of(SPEC_REPLY_KEEPER);
    keeper_reply(sock, &reply, &spare.pidfd, 1);
    close(spare.pidfd);
    close(spare.sock);
    spare.pid = 0;
    remember(open, request);
    return 0;
}

/* The library has closed a box: time to make the next spare, so that its namespaces cost no
 * waiting. Only when more boxes are likely, and only where directories come as mounts (a spare's
 * mount table is a copy of an earlier one, in which a plain directory might be missing). */
static void stage_spare(const Request *request)
{
    Fail ignored = {0}; /* the next open tries again, and says why it fails */
    if (spare.pid == 0 && last.n > 1 && (last.open.flags & SPEC_OPEN_MOUNT_FDS))
        spare_make(&last.open, last.cgroup, request, &ignored);
}

/* A user namespace that exists only to carry a map for MOUNT_ATTR_IDMAP. */
static int make_idmap(int sock, const SpecMap *uids, const SpecMap *gids, Fail *failed)
{
    struct kernel_clone_args args = {.flags = KERNEL_CLONE_NEWUSER, .exit_signal = SIGCHLD};
    pid_t pid = kernel_clone3(&args);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    if (pid < 0)
        return fail(failed, "make the id map's namespace", NULL);

    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    int r = write_maps(pid, uids, gids, true, failed);
    int fd = r == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (r == 0 && fd < 0)
        r = fail(failed, "open the id map's namespace", NULL);
    kill(pid, SIGKILL);

    if (r == 0) {
        SpecReply reply = keeper_reply_of(SPEC_REPLY_IDMAP);
        keeper_reply(sock, &reply, &fd, 1);
    }
    if (fd >= 0)
        close(fd);
    return r;
}

static void serve_one(int sock, const Request *request)
{
    Fail failed = {0};
    SpecMap uids, gids;
    static SpecOpen open;

    SpecOrder order;
    if (spec_get_order(request->bytes, request->len, &order)) {
        stage_spare(request);
    } else if (spec_get_idmap(request->bytes, request->len, &uids, &gids)) {
        if (make_idmap(sock, &uids, &gids, &failed) < 0)
            keeper_reply_failed(sock, &failed);
    } else if (!request->is_mapped && spec_get_open(request->bytes, request->len, &open) &&
               (uint32_t)request->n_fds == keeper_open_fds(&open)) {
        if (start_keeper(sock, &open, request, &failed) < 0)
            keeper_reply_failed(sock, &failed);
    } else {
        errno = EPROTO;
        fail(&failed, "malformed request", NULL);
        keeper_reply_failed(sock, &failed);
    }
}

/* What the caller ignores or blocks must not reach a command. */
static void signals_reset(void)
{
    sigset_t none;
    for (int i = 1; i < 65; i++)
        if (i != SIGKILL && i != SIGSTOP)
            signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN); /* keepers are reaped by the kernel; the library watches pidfds */
}

int main(void)
{
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    umask(022);
    signals_reset();
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || fcntl(KEEPER_SOCKET, F_SETFD, FD_CLOEXEC) < 0)
        return 2; /* not started by the library */
    close(KEEPER_PROGRAM);
    keeper_choose_masks(&proc_masks);
    keeper_landlock_abi = kernel_landlock_abi() > 0 ? kernel_landlock_abi() : 0;

    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    while (keeper_receive(KEEPER_SOCKET, buffer, &request) == 0) {
        serve_one(KEEPER_SOCKET, &request);
        keeper_request_free(&request);
    }
    return 0;
}
