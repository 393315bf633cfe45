/*
 * assay-box: the starter. Forks one keeper per box and writes its id maps.
 *
 * It exists because forking this 1 MB static program costs a tenth of a millisecond, while
 * executing it, or moving a new process into a version 1 cgroup, costs more than the rest of a
 * box together. It is spawned once per slot, put into the slot's cgroups by the library, and
 * everything it forks inherits them.
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static ProcMasks proc_masks;

int fail(Fail *failed, const char *what, const char *detail)
{
    if (failed->err == 0) {
        failed->err = errno != 0 ? errno : EIO;
        snprintf(failed->what, sizeof failed->what, "%s%s%s", what, detail != NULL ? " " : "",
                 detail != NULL ? detail : "");
    }
    return -1;
}

int keeper_write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    int err = errno;
    close(fd);
    errno = err;
    return n < 0 ? -1 : 0;
}

int keeper_reply(int sock, const SpecReply *reply, int fd_a, int fd_b)
{
    union {
        char bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {(void *)(uintptr_t)reply, sizeof *reply};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[2] = {fd_a, fd_b};
    size_t n = (fd_a >= 0) + (size_t)(fd_b >= 0);
    if (n > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(head), fds, n * sizeof(int));
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof *reply ? 0 : -1;
}

/* The descriptors of one message, close-on-exec. */
static int take_fds(struct msghdr *message, int *ret_fds, int fds_max)
{
    struct cmsghdr *head = CMSG_FIRSTHDR(message);
    if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
        return 0;
    int n = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    if (n > fds_max)
        return -1;
    memcpy(ret_fds, CMSG_DATA(head), (size_t)n * sizeof(int));
    return n;
}

/* A large request: the first descriptor is a memfd that holds it. */
static int map_request(Request *request)
{
    struct stat st;
    if (request->n_fds < 1 || fstat(request->fds[0], &st) < 0 || st.st_size < 8 ||
        st.st_size > SPEC_BYTES_MAX)
        return -1;
    void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, request->fds[0], 0);
    if (bytes == MAP_FAILED)
        return -1;
    close(request->fds[0]);
    request->n_fds--;
    memmove(request->fds, request->fds + 1, (size_t)request->n_fds * sizeof(int));
    request->bytes = bytes;
    request->len = (size_t)st.st_size;
    request->is_mapped = true;
    return 0;
}

int keeper_receive(int sock, uint8_t *buffer, Request *ret_request)
{
    static union {
        char bytes[CMSG_SPACE(SPEC_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {buffer, SPEC_INLINE_MAX};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    uint32_t magic;
    do
        got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < (ssize_t)sizeof magic || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        return -1;

    *ret_request = (Request){.bytes = buffer, .len = (size_t)got};
    ret_request->n_fds = take_fds(&message, ret_request->fds, (int)SPEC_FDS_MAX);
    if (ret_request->n_fds < 0)
        return -1;
    memcpy(&magic, buffer, sizeof magic);
    return magic == SPEC_MAGIC_MEMFD ? map_request(ret_request) : 0;
}

void keeper_request_free(Request *request)
{
    if (request->is_mapped)
        munmap((void *)(uintptr_t)request->bytes, request->len);
    for (int i = 0; i < request->n_fds; i++)
        close(request->fds[i]);
}

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

static void reply_fail(int sock, const Fail *failed)
{
    SpecReply reply = {.magic = SPEC_MAGIC_REPLY,
                       .version = SPEC_VERSION,
                       .kind = SPEC_REPLY_FAILED,
                       .err = failed->err};
    memcpy(reply.what, failed->what, sizeof reply.what);
    keeper_reply(sock, &reply, -1, -1);
}

static uint64_t open_flags(const SpecOpen *open)
{
    if (open->flags & SPEC_OPEN_DEGRADED)
        return KERNEL_CLONE_PIDFD;
    uint64_t flags = KERNEL_CLONE_PIDFD | KERNEL_CLONE_NEWUSER | KERNEL_CLONE_NEWNS |
                     KERNEL_CLONE_NEWUTS | KERNEL_CLONE_NEWPID;
    return open->flags & SPEC_OPEN_NET_HOST ? flags : flags | KERNEL_CLONE_NEWNET;
}

/* fds: the keeper's own socket, the cgroup if flagged, then the directories. */
static int start_keeper(int sock, const SpecOpen *open, const int *fds, Fail *failed)
{
    int ready[2], pidfd = -1;
    if (pipe2(ready, O_CLOEXEC) < 0)
        return fail(failed, "pipe", NULL);

    struct kernel_clone_args args = {
        .flags = open_flags(open), .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    int n = 1;
    if (open->flags & SPEC_OPEN_CGROUP) {
        args.flags |= KERNEL_CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)fds[n++];
    }
    pid_t pid = kernel_clone3(&args);
    if (pid == 0) {
        close(sock);
        close(ready[1]);
        keeper_serve(fds[0], open, fds + n, ready[0], &proc_masks);
    }
    close(ready[0]);
    if (pid < 0) {
        close(ready[1]);
        return fail(failed, "make namespaces (clone3)", NULL);
    }

    int r = 0;
    if (!(open->flags & SPEC_OPEN_DEGRADED))
        r = write_maps(pid, &open->uids, &open->gids, open->flags & SPEC_OPEN_SETGROUPS, failed);
    if (r == 0 && write(ready[1], "", 1) != 1)
        r = fail(failed, "wake the keeper", NULL);
    close(ready[1]);

    if (r == 0) {
        SpecReply reply = {
            .magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = SPEC_REPLY_KEEPER};
        keeper_reply(sock, &reply, pidfd, -1);
    }
    close(pidfd);
    return r;
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
        SpecReply reply = {
            .magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = SPEC_REPLY_IDMAP};
        keeper_reply(sock, &reply, fd, -1);
    }
    if (fd >= 0)
        close(fd);
    return r;
}

static uint32_t n_fds_wanted(const SpecOpen *open)
{
    return 2 + open->n_layers + open->n_work + open->n_mounts +
           ((open->flags & SPEC_OPEN_CGROUP) != 0) + ((open->flags & SPEC_OPEN_ROOT_UPPER) != 0) +
           ((open->flags & SPEC_OPEN_WORK_UPPER) != 0);
}

static void serve_one(int sock, const Request *request)
{
    Fail failed = {0};
    SpecMap uids, gids;
    static SpecOpen open;

    if (spec_get_idmap(request->bytes, request->len, &uids, &gids)) {
        if (make_idmap(sock, &uids, &gids, &failed) < 0)
            reply_fail(sock, &failed);
    } else if (spec_get_open(request->bytes, request->len, &open) &&
               (uint32_t)request->n_fds == n_fds_wanted(&open)) {
        if (start_keeper(sock, &open, request->fds, &failed) < 0)
            reply_fail(sock, &failed);
    } else {
        errno = EPROTO;
        fail(&failed, "malformed request", NULL);
        reply_fail(sock, &failed);
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

    static uint8_t buffer[SPEC_INLINE_MAX]; /* a keeper keeps its copy: its spec lies here */
    Request request;
    while (keeper_receive(KEEPER_SOCKET, buffer, &request) == 0) {
        serve_one(KEEPER_SOCKET, &request);
        keeper_request_free(&request);
    }
    return 0;
}
