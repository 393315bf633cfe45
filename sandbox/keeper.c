/*
 * The keeper of one box: builds its tree, then stages one init per command.
 *
 * Invariants:
 *   1. It is born inside the box's user, mount, UTS and network namespaces and never leaves the
 *      user namespace.
 *   2. When the library's end of the socket closes the keeper ends; it is PID 1 of the outer pid
 *      namespace, so the kernel then kills every init and command, and the tree goes with the mount
 *      namespace. Without namespaces it tells each init to end and waits.
 *   3. It never runs foreign code. Of what commands wrote it reads only what it copies from one
 *      generation to another, inside the box's own namespaces.
 *   4. An init is staged in fresh pid, mount, IPC and cgroup namespaces; from then on the library
 *      talks to it directly.
 *
 * Not here: the tree (keeper_tree.c), what happens inside a pid namespace (keeper_init.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"
#include "sandbox/layer.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

static int loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return -1;
    int r = ioctl(sock, SIOCSIFFLAGS, &request);
    close(sock);
    return r;
}

/* Later children live in a time namespace whose monotonic clocks start at zero. Best effort. */
static bool time_namespace(void)
{
    struct timespec mono, boot;
    char text[128];
    if (clock_gettime(CLOCK_MONOTONIC, &mono) < 0 || clock_gettime(CLOCK_BOOTTIME, &boot) < 0 ||
        unshare((int)KERNEL_CLONE_NEWTIME) < 0)
        return false;
    snprintf(text, sizeof text, "monotonic -%lld 0\nboottime -%lld 0\n", (long long)mono.tv_sec,
             (long long)boot.tv_sec);
    return keeper_write_text("/proc/self/timens_offsets", text) == 0;
}

/* Inside the new namespaces, once the maps are written. */
static int enter(Keeper *keeper, uint32_t flags, int maps_ready_fd, Fail *failed)
{
    char byte;
    if (read(maps_ready_fd, &byte, 1) != 1)
        return fail(failed, "wait for the id maps", NULL);
    close(maps_ready_fd);

    /* With a single id there is nothing to change to, and the capabilities are ours already. */
    if ((flags & SPEC_OPEN_SETGROUPS) &&
        (setresgid(0, 0, 0) < 0 || setgroups(0, NULL) < 0 || setresuid(0, 0, 0) < 0))
        return fail(failed, "take id 0 of the box", NULL);
    /* The id change cleared both; our own /proc files are needed until the tree stands. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 1) < 0)
        return fail(failed, "prctl", NULL);
    if (!(flags & SPEC_OPEN_NET_HOST)) {
        if (loopback_up() < 0)
            return fail(failed, "bring the loopback interface up", NULL);
        keeper->layers |= BOX_LAYER_NET;
    }
    if (time_namespace())
        keeper->layers |= BOX_LAYER_TIME;
    /* A second wall behind the filter: no user namespace below ours. */
    keeper_write_text("/proc/sys/user/max_user_namespaces", "0");
    keeper->layers |= BOX_LAYER_USER | BOX_LAYER_MOUNT | BOX_LAYER_UTS;
    return 0;
}

/* Where the box's programs find the proxy. The proxy is a process of the host's network that is
 * given this socket; nothing else crosses. */
static int send_listener(const Keeper *keeper, Fail *failed)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(SPEC_PROXY_PORT),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    SpecReply reply = keeper_reply_of(SPEC_REPLY_LISTENER);
    if (!(keeper->open.flags & SPEC_OPEN_NET_PROXY))
        return 0;
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || bind(sock, (struct sockaddr *)&at, sizeof at) < 0 || listen(sock, 128) < 0)
        return fail(failed, "listen for the proxy", NULL);
    keeper_reply(keeper->sock, &reply, &sock, 1);
    close(sock);
    return 0;
}

/* Layers that every payload gets or does not start. */
static uint32_t payload_layers(const Keeper *keeper)
{
    uint32_t layers = BOX_LAYER_NO_NEW_PRIVS | BOX_LAYER_RLIMITS | BOX_LAYER_CAPS;
    if ((keeper->open.flags & SPEC_OPEN_DEGRADED) && geteuid() != 0)
        layers &= ~(uint32_t)BOX_LAYER_CAPS; /* there were none to drop */
    if (keeper->open.filter_len > 0)
        layers |= BOX_LAYER_SECCOMP;
    if (keeper_landlock_abi > 0)
        layers |= BOX_LAYER_LANDLOCK;
    if (!(keeper->open.flags & SPEC_OPEN_DEGRADED))
        layers |= BOX_LAYER_PID | BOX_LAYER_IPC | BOX_LAYER_CGROUP_NS;
    return layers;
}

/* Inits that may be alive; only without namespaces does anybody need to know. */
#define INITS_MAX 64
static int inits[INITS_MAX];
static int n_inits;

static bool has_ended(int pidfd, int wait_ms)
{
    struct pollfd polled = {.fd = pidfd, .events = POLLIN};
    return poll(&polled, 1, wait_ms) > 0;
}

static void remember_init(int pidfd)
{
    for (int i = n_inits; i-- > 0;)
        if (has_ended(inits[i], 0)) {
            close(inits[i]);
            inits[i] = inits[--n_inits];
        }
    if (n_inits < INITS_MAX)
        inits[n_inits++] = pidfd;
    else
        close(pidfd);
}

/* Without a pid namespace nobody dies with us: each init ends its command, then itself. */
static void end_inits(void)
{
    for (int i = 0; i < n_inits; i++)
        kernel_pidfd_kill(inits[i], SIGTERM);
    for (int i = 0; i < n_inits; i++)
        has_ended(inits[i], -1);
}

/* An init that has its namespaces and its /proc, and waits for a spec and a tree. The first one of
 * a box is made before the box is asked for. */
typedef struct Early {
    int pidfd, sock, go; /* sock: the library's end */
} Early;
static Early early = {-1, -1, -1};

static int make_early(uint32_t flags, const Keeper *keeper, Fail *failed)
{
    bool degraded = flags & SPEC_OPEN_DEGRADED;
    int socks[2], go[2], pidfd = -1;
    struct kernel_clone_args args = {
        .flags = KERNEL_CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    if (!degraded)
        args.flags |=
            KERNEL_CLONE_NEWPID | KERNEL_CLONE_NEWIPC | KERNEL_CLONE_NEWNS | KERNEL_CLONE_NEWCGROUP;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, go) < 0)
        return fail(failed, "socketpair", NULL);
    pid_t pid = kernel_clone3(&args);
    if (pid == 0) {
        if (keeper->sock >= 0)
            close(keeper->sock);
        close(socks[0]);
        close(go[0]);
        keeper_init(flags, keeper->masks, socks[1], go[1]);
    }
    close(socks[1]);
    close(go[1]);
    early = (Early){pidfd, socks[0], go[0]};
    return pid < 0 ? fail(failed, "start init (clone3)", NULL) : 0;
}

/* Gives the early init its spec and its own copy of the tree's mounts. */
static int send_to_early(const Keeper *keeper, Fail *failed)
{
    int tree = -1;
    if (keeper->copy_fd < 0) {
        tree = kernel_open_tree(AT_FDCWD, keeper->tree,
                                KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC |
                                    KERNEL_AT_RECURSIVE);
        if (tree < 0)
            return fail(failed, "copy the tree (open_tree)", NULL);
    }
    int fd = tree >= 0 ? tree : keeper->copy_fd;
    int r = keeper_send(early.go, keeper->spec, keeper->spec_len, &fd, 1);
    if (tree >= 0)
        close(tree);
    return r < 0 ? fail(failed, "wake init", NULL) : 0;
}

static int stage(const Keeper *keeper, Fail *failed)
{
    bool degraded = keeper->open.flags & SPEC_OPEN_DEGRADED;
    int r = early.pidfd >= 0 ? 0 : make_early(keeper->open.flags, keeper, failed);
    if (r == 0 && (r = send_to_early(keeper, failed)) == 0) {
        SpecReply ready = keeper_reply_of(SPEC_REPLY_READY);
        keeper_reply(keeper->sock, &ready, (const int[]){early.pidfd, early.sock}, 2);
        if (degraded)
            remember_init(early.pidfd);
    }
    if (early.pidfd >= 0 && (!degraded || r < 0))
        close(early.pidfd);
    close(early.sock);
    close(early.go);
    early = (Early){-1, -1, -1};
    return r;
}

/* A network namespace for later commands, made by entering it and coming back. */
static int make_network(Fail *failed)
{
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), made = -1;
    if (here < 0 || unshare((int)KERNEL_CLONE_NEWNET) < 0)
        fail(failed, "make a network namespace", NULL);
    else if (loopback_up() < 0 || (made = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
        fail(failed, "bring the loopback interface up", NULL);
    if (here >= 0) {
        if (setns(here, (int)KERNEL_CLONE_NEWNET) < 0)
            _exit(1);
        close(here);
    }
    return made;
}

/* What the next reset needs, made ahead: a tree, a network namespace, an early init in it. */
static struct {
    Early early;
    int net;
} next = {.early = {-1, -1, -1}, .net = -1};

static void early_drop(Early *dropped)
{
    const int fds[] = {dropped->pidfd, dropped->sock, dropped->go};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    *dropped = (Early){-1, -1, -1};
}

static int enter_network(int net, Fail *failed)
{
    return setns(net, (int)KERNEL_CLONE_NEWNET) < 0
               ? fail(failed, "enter a network namespace", NULL)
               : 0;
}

static void make_next(Keeper *keeper, const SpecTree *spec)
{
    Fail ignored = {0};
    if (spec->n_gens > 0 || (keeper->open.flags & (SPEC_OPEN_NET_HOST | SPEC_OPEN_NET_PROXY)))
        return;
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    next.net = make_network(&ignored);
    if (here >= 0 && next.net >= 0 && enter_network(next.net, &ignored) == 0) {
        if (make_early(keeper->open.flags, keeper, &ignored) == 0)
            next.early = early;
        else
            early_drop(&early);
        early = (Early){-1, -1, -1};
        if (enter_network(here, &ignored) < 0)
            _exit(1);
        keeper_tree_make_spare(keeper, spec);
    }
    if (here >= 0)
        close(here);
}

/* What commands get from now on; those that run keep theirs. */
static int renew_network(const Keeper *keeper, Fail *failed)
{
    if (keeper->open.flags & (SPEC_OPEN_NET_HOST | SPEC_OPEN_NET_PROXY))
        return 0; /* the proxy listens in the one there is */
    if (next.net < 0 && (next.net = make_network(failed)) < 0)
        return -1;
    int r = enter_network(next.net, failed);
    close(next.net);
    next.net = -1;
    early_drop(&early);
    early = next.early;
    next.early = (Early){-1, -1, -1};
    return r;
}

static void send_tree(const Keeper *keeper, SpecReplyKind kind, const KeeperTree *tree)
{
    SpecReply reply = keeper_reply_of(kind);
    reply.layers = keeper->layers | payload_layers(keeper);
    reply.landlock_abi = (uint32_t)keeper_landlock_abi;
    keeper_reply(keeper->sock, &reply, tree->fds, SPEC_TREE_FDS);
}

static int serve_order(Keeper *keeper, const Request *request, Fail *failed)
{
    SpecOrder order;
    if (!spec_get_order(request->bytes, request->len, &order) || order != SPEC_ORDER_STAGE)
        return 1;
    return stage(keeper, failed);
}

/* The next command will want an init at once. A box that is reset once will be again. */
static int serve_tree(Keeper *keeper, const Request *request, Fail *failed)
{
    SpecTree spec;
    KeeperTree tree;
    if (!spec_get_tree(request->bytes, request->len, &spec) ||
        (uint32_t)request->n_fds != spec.n_gens || (keeper->open.flags & SPEC_OPEN_DEGRADED))
        return 1;
    if (!keeper_tree_use_spare(keeper, &spec, &tree) &&
        keeper_tree_rebuild(keeper, request->fds, &spec, &tree, failed) < 0)
        return -1;
    send_tree(keeper, SPEC_REPLY_TREE, &tree);
    bool reset = spec.flags & SPEC_TREE_NEW_NET;
    if (reset && renew_network(keeper, failed) < 0)
        return -1;
    int r = stage(keeper, failed);
    keeper_tree_tidy();
    if (r == 0 && reset)
        make_next(keeper, &spec);
    return r;
}

static int serve_copy(Keeper *keeper, const Request *request, Fail *failed)
{
    uint32_t n_gens;
    int fd;
    if (!spec_get_copy(request->bytes, request->len, &n_gens) ||
        (uint32_t)request->n_fds != n_gens || (keeper->open.flags & SPEC_OPEN_DEGRADED))
        return 1;
    if (keeper_tree_copy(keeper, request->fds, n_gens, &fd, failed) < 0)
        return -1;
    SpecReply reply = keeper_reply_of(SPEC_REPLY_COPIED);
    keeper_reply(keeper->sock, &reply, &fd, 1);
    if (fd >= 0)
        close(fd);
    return 0;
}

/* One request; false ends the keeper. */
static bool serve_one(Keeper *keeper)
{
    static const struct {
        uint32_t magic;
        int (*fn)(Keeper *keeper, const Request *request, Fail *failed); /* 1: malformed */
    } table[] = {{SPEC_MAGIC_ORDER, serve_order},
                 {SPEC_MAGIC_TREE, serve_tree},
                 {SPEC_MAGIC_COPY, serve_copy}};
    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    uint32_t magic;
    Fail failed = {0};
    int r = 1;
    if (keeper_receive(keeper->sock, buffer, &request) < 0)
        return false;
    memcpy(&magic, request.bytes, sizeof magic);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].magic == magic)
            r = table[i].fn(keeper, &request, &failed);
    if (r < 0)
        keeper_reply_failed(keeper->sock, &failed);
    keeper_request_free(&request);
    return r <= 0;
}

/* Directories of the tree: roots, layers, work, uppers, mounts. */
uint32_t keeper_dir_fds(const SpecOpen *open)
{
    return open->n_root + open->n_layers + open->n_work + open->n_mounts +
           ((open->flags & SPEC_OPEN_ROOT_UPPER) != 0) +
           ((open->flags & SPEC_OPEN_WORK_UPPER) != 0);
}

/* With them the socket, the cgroup and the generations. */
uint32_t keeper_open_fds(const SpecOpen *open)
{
    return 1 + ((open->flags & SPEC_OPEN_CGROUP) != 0) + keeper_dir_fds(open) + open->n_gens;
}

/* What can be done before the spec is known. */
static int prepare(Keeper *keeper, uint32_t flags, int maps_ready_fd, Fail *failed)
{
    signal(SIGCHLD, SIG_IGN); /* inits are reaped by the kernel; the library watches pidfds */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    if (flags & SPEC_OPEN_DEGRADED)
        return 0;
    if (enter(keeper, flags, maps_ready_fd, failed) < 0 || keeper_lock_capabilities(failed) < 0)
        return -1;
    if (!(flags & SPEC_OPEN_MOUNT_FDS))
        return 0;
    return keeper_tree_base(keeper, flags, failed) < 0 ? -1 : make_early(flags, keeper, failed);
}

static int build(Keeper *keeper, const int *fds, KeeperTree *ret, Fail *failed)
{
    const SpecOpen *open = &keeper->open;
    *ret = (KeeperTree){{-1, -1, -1}};
    if (open->flags & SPEC_OPEN_DEGRADED) {
        keeper->copy_fd = fds[0];
    } else {
        if (sethostname(open->hostname, strlen(open->hostname)) < 0 ||
            setdomainname("(none)", 6) < 0)
            return fail(failed, "set the host name", NULL);
        if (keeper_tree_open(keeper, fds, ret, failed) < 0)
            return -1;
    }
    return prctl(PR_SET_DUMPABLE, 0) < 0 ? fail(failed, "prctl", NULL) : 0;
}

void keeper_serve(int spec_sock, uint32_t flags, int maps_ready_fd, const ProcMasks *masks)
{
    static uint8_t buffer[SPEC_INLINE_MAX]; /* the spec's strings lie here for good */
    static Request request;
    static Keeper keeper;
    KeeperTree tree;
    Fail failed = {0};
    keeper.masks = masks;
    keeper.copy_fd = keeper.sock = -1;
    int r = prepare(&keeper, flags, maps_ready_fd, &failed);
    if (keeper_receive(spec_sock, buffer, &request) < 0 ||
        !spec_get_open(request.bytes, request.len, &keeper.open) ||
        (uint32_t)request.n_fds != keeper_open_fds(&keeper.open))
        _exit(1); /* the starter is gone, or dropped us */
    close(spec_sock);
    keeper.sock = request.fds[0];
    keeper.spec = request.bytes;
    keeper.spec_len = request.len;
    const int *fds = request.fds + 1 + ((keeper.open.flags & SPEC_OPEN_CGROUP) != 0);
    if (r < 0 || build(&keeper, fds, &tree, &failed) < 0 || send_listener(&keeper, &failed) < 0) {
        keeper_reply_failed(keeper.sock, &failed);
        _exit(1);
    }
    send_tree(&keeper, SPEC_REPLY_OPENED, &tree);
    if (stage(&keeper, &failed) < 0)
        keeper_reply_failed(keeper.sock, &failed);
    for (int i = 1; i < request.n_fds; i++)
        if (request.fds[i] != keeper.copy_fd)
            close(request.fds[i]);
    while (serve_one(&keeper))
        ;
    end_inits();
    _exit(0);
}
