/*
 * Messages of assay-box, and its two smallest helpers.
 *
 * Invariants:
 *   1. Received descriptors are close-on-exec from birth.
 *   2. A truncated message, or more descriptors than asked for, ends the conversation.
 *   3. So does a reply that cannot be sent: nobody waits for it.
 *
 * Not here: what is in a message (spec.c).
 */
#include "sandbox/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

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

int keeper_send(int sock, const void *bytes, size_t len, const int *fds, int n_fds)
{
    static union {
        char bytes[CMSG_SPACE(SPEC_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    size_t size = (size_t)n_fds * sizeof(int);
    if (n_fds > 0) {
        memset(&control, 0, CMSG_SPACE(size));
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
    return sent == (ssize_t)len ? 0 : -1;
}

SpecReply keeper_reply_of(SpecReplyKind kind)
{
    return (SpecReply){.magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = kind};
}

void keeper_reply_failed(int sock, const Fail *failed)
{
    SpecReply reply = keeper_reply_of(SPEC_REPLY_FAILED);
    reply.err = failed->err;
    memcpy(reply.what, failed->what, sizeof reply.what);
    keeper_reply(sock, &reply, NULL, 0);
}

int keeper_reply(int sock, const SpecReply *reply, const int *fds, int n_fds)
{
    SpecReply sent = *reply;
    int present[SPEC_FDS_OF_REPLY] = {0}, n = 0;
    for (int i = 0; i < n_fds; i++)
        if (fds[i] >= 0) {
            sent.fd_mask |= 1u << i;
            present[n++] = fds[i];
        }
    int r = keeper_send(sock, &sent, sizeof sent, present, n);
    if (r < 0)
        shutdown(sock, SHUT_RDWR);
    return r;
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
    request->memfd = request->fds[0];
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
    if (request->is_mapped) {
        munmap((void *)(uintptr_t)request->bytes, request->len);
        close(request->memfd);
    }
    for (int i = 0; i < request->n_fds; i++)
        close(request->fds[i]);
}
