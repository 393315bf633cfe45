/*
 * Starting assay-box from a sealed copy, and the message layer.
 *
 * Invariants:
 *   1. The program that runs is a sealed memfd: no box can reach the file (CVE-2019-5736).
 *   2. posix_spawn, never fork: the caller may be large.
 *   3. Replies are hostile until spec_reply_ok(); descriptors beyond those asked for are closed.
 *
 * Not here: what is in a request (box.c), cgroups (cgroup.c).
 */
#include "sandbox/launch.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/keeper.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PROGRAM        "assay-box"
#define REPLY_WAIT_MS  30000
#define KEEPER_WAIT_MS 10000
#define HIGH_FD        16 /* above the numbers that file actions assign */

static GHashTable *starters; /* slot -> Starter */
static GHashTable *idmaps;   /* map text -> fd */

static void append(void *ctx, const void *data, size_t len)
{
    g_byte_array_append(ctx, data, (guint)len);
}

SpecWriter launch_writer(GByteArray *bytes)
{
    return (SpecWriter){.put = append, .ctx = bytes};
}

/* ASSAY_LIBEXEC, next to the running program, the build tree, the installed place. */
int launch_open_program(const char *name, GError **error)
{
    const char *libexec = g_getenv("ASSAY_LIBEXEC");
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *here = self != NULL ? g_path_get_dirname(self) : g_strdup(".");
    const struct {
        const char *top, *below;
    } places[] = {{libexec, "."},
                  {here, "."},
                  {here, "../sandbox"},
                  {here, "../../sandbox"},
                  {ASSAY_LIBEXECDIR, "."}};
    for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
        if (places[i].top == NULL)
            continue;
        g_autofree char *path = g_build_filename(places[i].top, places[i].below, name, NULL);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            return fd;
    }
    error_set(error, ASSAY_ERROR_NOT_FOUND,
              "the program %s is neither next to this one nor in %s; set ASSAY_LIBEXEC to its "
              "directory",
              name, ASSAY_LIBEXECDIR);
    return -1;
}

static gboolean seal(int fd, GError **error)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_set_errno(error, errno, "seal a memfd");
    return TRUE;
}

/* The sealed copy, made once per process. */
static int program_fd(GError **error)
{
    static int sealed = -1;
    if (sealed >= 0)
        return sealed;

    AUTO_FD from = launch_open_program(PROGRAM, error);
    if (from < 0)
        return -1;
    AUTO_FD to = memfd_create(PROGRAM, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (to < 0) {
        error_set_errno(error, errno, "memfd_create");
        return -1;
    }
    ssize_t n;
    do
        n = sendfile(to, from, NULL, 1 << 24);
    while (n > 0);
    if (n < 0) {
        error_set_errno(error, errno, "copy %s", PROGRAM);
        return -1;
    }
    if (!seal(to, error))
        return -1;
    sealed = fcntl(to, F_DUPFD_CLOEXEC, HIGH_FD);
    if (sealed < 0)
        error_set_errno(error, errno, "dup");
    return sealed;
}

static gboolean spawn(int program, int sock, pid_t *ret_pid, GError **error)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none;
    char word[] = PROGRAM;
    char *const argv[] = {word, NULL};
    char *const envp[] = {NULL};
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", KEEPER_PROGRAM);

    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    posix_spawn_file_actions_adddup2(&actions, 0, 2);
    posix_spawn_file_actions_adddup2(&actions, sock, KEEPER_SOCKET);
    posix_spawn_file_actions_adddup2(&actions, program, KEEPER_PROGRAM);
    posix_spawn_file_actions_addclosefrom_np(&actions, KEEPER_PROGRAM + 1);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    int r = posix_spawn(ret_pid, path, &actions, &attr, argv, envp);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return r == 0 || error_set_errno(error, r, "start %s", PROGRAM);
}

/* Has it died within that time? Then it is forgotten. */
static gboolean is_dead(Starter *starter, guint i, int wait_ms)
{
    GPollFD polled = {.fd = starter->dying[i], .events = G_IO_IN};
    if (g_poll(&polled, 1, wait_ms) <= 0)
        return FALSE;
    close(starter->dying[i]);
    starter->dying[i] = starter->dying[--starter->n_dying];
    return TRUE;
}

void launch_wait_keepers(Starter *starter)
{
    while (starter->n_dying > 0)
        if (!is_dead(starter, 0, KEEPER_WAIT_MS))
            kernel_pidfd_kill(starter->dying[0], SIGKILL);
}

void launch_leave_keeper(Starter *starter, int pidfd)
{
    for (guint i = starter->n_dying; i-- > 0;)
        is_dead(starter, i, 0);
    if (starter->n_dying == LAUNCH_DYING_MAX)
        launch_wait_keepers(starter);
    starter->dying[starter->n_dying++] = pidfd;
}

static void starter_free(gpointer data)
{
    Starter *starter = data;
    launch_wait_keepers(starter);
    close(starter->sock);
    kill(starter->pid, SIGKILL);
    while (waitpid(starter->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    g_free(starter);
}

static gboolean is_alive(const Starter *starter)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)starter->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

/* close-on-exec pair whose second end has a high number, so that dup2 to 3 never hits itself. */
static gboolean make_pair(int sv[2], GError **error)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
        return error_set_errno(error, errno, "socketpair");
    int high = fcntl(sv[1], F_DUPFD_CLOEXEC, HIGH_FD);
    if (high < 0) {
        close(sv[0]);
        close(sv[1]);
        return error_set_errno(error, errno, "dup");
    }
    close(sv[1]);
    sv[1] = high;
    return TRUE;
}

Starter *launch_starter(guint slot, GError **error)
{
    if (starters == NULL)
        starters = g_hash_table_new_full(NULL, NULL, NULL, starter_free);
    Starter *known = g_hash_table_lookup(starters, GUINT_TO_POINTER(slot));
    if (known != NULL && is_alive(known))
        return known;
    g_hash_table_remove(starters, GUINT_TO_POINTER(slot));

    int sv[2], program = program_fd(error);
    pid_t pid = -1;
    if (program < 0 || !make_pair(sv, error))
        return NULL;
    gboolean ok = spawn(program, sv[1], &pid, error);
    close(sv[1]);
    if (!ok) {
        close(sv[0]);
        return NULL;
    }
    Starter *starter = g_new0(Starter, 1);
    *starter = (Starter){.slot = slot, .sock = sv[0], .pid = pid};
    g_hash_table_insert(starters, GUINT_TO_POINTER(slot), starter);
    return starter;
}

void launch_stop_all(void)
{
    g_clear_pointer(&starters, g_hash_table_unref);
    if (idmaps == NULL)
        return;
    GHashTableIter iter;
    gpointer fd;
    g_hash_table_iter_init(&iter, idmaps);
    while (g_hash_table_iter_next(&iter, NULL, &fd))
        close(GPOINTER_TO_INT(fd));
    g_clear_pointer(&idmaps, g_hash_table_unref);
}

/* The request's bytes as a sealed, read-only descriptor. */
static int memfd_of(GByteArray *bytes, GError **error)
{
    AUTO_FD fd = memfd_create("request", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        error_set_errno(error, errno, "memfd_create");
        return -1;
    }
    if (!fd_write_all(fd, bytes->data, bytes->len, error) || !seal(fd, error))
        return -1;
    return fd_take(&fd);
}

/* Sends DATA with the descriptors. */
static gboolean send_message(int sock, const void *data, gsize len, const int *fds, guint n_fds,
                             GError **error)
{
    union {
        char bytes[CMSG_SPACE(SPEC_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {(void *)(gsize)data, len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    gsize size = n_fds * sizeof(int);
    if (n_fds > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(size);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(head), fds, size);
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)len || error_set_errno(error, errno, "send to assay-box");
}

gboolean launch_send(int sock, GByteArray *bytes, const int *fds, guint n_fds, GError **error)
{
    if (bytes->len > SPEC_BYTES_MAX || n_fds + 1 > SPEC_FDS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "the request to assay-box is too large");
    if (bytes->len <= SPEC_INLINE_MAX)
        return send_message(sock, bytes->data, bytes->len, fds, n_fds, error);

    int all[SPEC_FDS_MAX];
    guint32 magic = SPEC_MAGIC_MEMFD;
    AUTO_FD request = memfd_of(bytes, error);
    if (request < 0)
        return FALSE;
    all[0] = request;
    if (n_fds > 0)
        memcpy(all + 1, fds, n_fds * sizeof(int));
    return send_message(sock, &magic, sizeof magic, all, n_fds + 1, error);
}

/* The descriptors of a message at their places by MASK; those nobody asked for are closed. */
static void take_fds(struct msghdr *message, guint32 mask, int *ret_fds, guint fds_max)
{
    struct cmsghdr *head = CMSG_FIRSTHDR(message);
    if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
        return;
    guint n = (guint)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int)), place = 0;
    for (guint i = 0; i < n; i++, place++) {
        int fd;
        memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof fd);
        while (place < fds_max && !(mask & (1u << place)))
            place++;
        if (place < fds_max)
            ret_fds[place] = fd;
        else
            close(fd);
    }
}

gboolean launch_is_closed(int sock)
{
    char byte;
    ssize_t n = recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno == ECONNRESET) /* it died without reading all; what it said is still there */
        n = recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

gboolean launch_receive(int sock, SpecReply *ret_reply, int *ret_fds, guint fds_max, GError **error)
{
    union {
        char bytes[CMSG_SPACE(SPEC_FDS_OF_REPLY * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {ret_reply, sizeof *ret_reply};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    for (guint i = 0; i < fds_max; i++)
        ret_fds[i] = -1;
    GPollFD polled = {.fd = sock, .events = G_IO_IN};
    if (g_poll(&polled, 1, REPLY_WAIT_MS) <= 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box did not answer");
    ssize_t n;
    do
        n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || errno == ECONNRESET)); /* a reset is said once */
    if (n <= 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box ended unexpectedly");
    gboolean ok = !(message.msg_flags & MSG_TRUNC) && spec_reply_ok(ret_reply, (size_t)n);
    take_fds(&message, ok ? ret_reply->fd_mask : 0, ret_fds, fds_max);
    if (!ok)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent a malformed reply");
    if (ret_reply->kind == SPEC_REPLY_FAILED)
        return error_set_errno(error, ret_reply->err, "assay-box: %s", ret_reply->what);
    return TRUE;
}

int launch_idmap(Starter *starter, const SpecMap *uids, const SpecMap *gids, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    spec_put_idmap(&writer, uids, gids);
    g_autofree char *key = g_base64_encode(bytes->data, bytes->len);
    if (idmaps == NULL)
        idmaps = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    gpointer known = NULL;
    if (g_hash_table_lookup_extended(idmaps, key, NULL, &known))
        return GPOINTER_TO_INT(known);

    SpecReply reply;
    int fd = -1;
    if (!launch_send(starter->sock, bytes, NULL, 0, error) ||
        !launch_receive(starter->sock, &reply, &fd, 1, error))
        return -1;
    if (reply.kind != SPEC_REPLY_IDMAP || fd < 0) {
        error_set(error, ASSAY_ERROR_SYSTEM, "assay-box gave no id map");
        return -1;
    }
    g_hash_table_insert(idmaps, g_steal_pointer(&key), GINT_TO_POINTER(fd));
    return fd;
}
