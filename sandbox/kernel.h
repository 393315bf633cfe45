/*
 * Linux calls that Debian 12's C library does not wrap or its headers do not know.
 *
 * The numbers are the same on every architecture (all are newer than the unified table). Every
 * wrapper returns what the call returns and sets errno; none is used without its result checked.
 */
#pragma once

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define KERNEL_NR_PIDFD_SEND_SIGNAL 424
#define KERNEL_NR_OPEN_TREE         428
#define KERNEL_NR_MOVE_MOUNT        429
#define KERNEL_NR_FSOPEN            430
#define KERNEL_NR_FSCONFIG          431
#define KERNEL_NR_FSMOUNT           432
#define KERNEL_NR_CLONE3            435
#define KERNEL_NR_CLOSE_RANGE       436
#define KERNEL_NR_OPENAT2           437
#define KERNEL_NR_MOUNT_SETATTR     442
#define KERNEL_NR_LANDLOCK_CREATE   444
#define KERNEL_NR_LANDLOCK_ADD      445
#define KERNEL_NR_LANDLOCK_RESTRICT 446

#define KERNEL_CLONE_NEWTIME     0x00000080u
#define KERNEL_CLONE_PIDFD       0x00001000ull
#define KERNEL_CLONE_NEWNS       0x00020000ull
#define KERNEL_CLONE_NEWCGROUP   0x02000000u
#define KERNEL_CLONE_NEWUTS      0x04000000ull
#define KERNEL_CLONE_NEWIPC      0x08000000ull
#define KERNEL_CLONE_NEWUSER     0x10000000ull
#define KERNEL_CLONE_NEWPID      0x20000000ull
#define KERNEL_CLONE_NEWNET      0x40000000ull
#define KERNEL_CLONE_INTO_CGROUP 0x200000000ull

struct kernel_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size, cgroup;
};

/* As fork(2), with namespaces. The child shares nothing with a single-threaded parent. */
static inline pid_t kernel_clone3(struct kernel_clone_args *args)
{
    return (pid_t)syscall(KERNEL_NR_CLONE3, args, sizeof *args);
}

#define KERNEL_CLOSE_RANGE_CLOEXEC 4u

static inline int kernel_close_range(unsigned first, unsigned last, unsigned flags)
{
    return (int)syscall(KERNEL_NR_CLOSE_RANGE, first, last, flags);
}

struct kernel_open_how {
    uint64_t flags, mode, resolve;
};
#define KERNEL_RESOLVE_NO_XDEV       0x01u
#define KERNEL_RESOLVE_NO_MAGICLINKS 0x02u
#define KERNEL_RESOLVE_NO_SYMLINKS   0x04u
#define KERNEL_RESOLVE_BENEATH       0x08u
#define KERNEL_OPENAT2_TRIES         64

static inline int kernel_openat2(int dir_fd, const char *path, uint64_t flags, uint64_t mode,
                                 uint64_t resolve)
{
    struct kernel_open_how how = {flags, mode, resolve};
    int fd = -1;
    errno = EAGAIN; /* is given while anyone renames or mounts anywhere: ".." could not be judged */
    for (int i = 0; i < KERNEL_OPENAT2_TRIES && fd < 0 && errno == EAGAIN; i++)
        fd = (int)syscall(KERNEL_NR_OPENAT2, dir_fd, path, &how, sizeof how);
    return fd;
}

#define KERNEL_AT_EMPTY_PATH      0x1000u
#define KERNEL_AT_RECURSIVE       0x8000u
#define KERNEL_OPEN_TREE_CLONE    1u
#define KERNEL_OPEN_TREE_CLOEXEC  02000000u
#define KERNEL_MOVE_MOUNT_F_EMPTY 4u
#define KERNEL_MOVE_MOUNT_T_EMPTY 0x40u

#define KERNEL_MOUNT_ATTR_RDONLY 0x01u
#define KERNEL_MOUNT_ATTR_NOSUID 0x02u
#define KERNEL_MOUNT_ATTR_NODEV  0x04u
#define KERNEL_MOUNT_ATTR_NOEXEC 0x08u
#define KERNEL_MOUNT_ATTR_IDMAP  0x00100000u

struct kernel_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};

static inline int kernel_open_tree(int dir_fd, const char *path, unsigned flags)
{
    return (int)syscall(KERNEL_NR_OPEN_TREE, dir_fd, path, flags);
}

/* Attaches the detached mount `fd` on the directory or file `to_fd`. */
static inline int kernel_move_mount(int fd, int to_fd)
{
    return (int)syscall(KERNEL_NR_MOVE_MOUNT, fd, "", to_fd, "",
                        KERNEL_MOVE_MOUNT_F_EMPTY | KERNEL_MOVE_MOUNT_T_EMPTY);
}

static inline int kernel_fsopen(const char *type)
{
    return (int)syscall(KERNEL_NR_FSOPEN, type, 1u /* CLOEXEC */);
}

static inline int kernel_fs_option(int fs, const char *key, const char *value)
{
    return (int)syscall(KERNEL_NR_FSCONFIG, fs, 1u /* SET_STRING */, key, value, 0);
}

static inline int kernel_fs_flag(int fs, const char *key)
{
    return (int)syscall(KERNEL_NR_FSCONFIG, fs, 0u /* SET_FLAG */, key, NULL, 0);
}

/* Creates the superblock of `fs`: a detached mount of it, ready to attach, or -1. */
static inline int kernel_fsmount(int fs, unsigned attr)
{
    if (syscall(KERNEL_NR_FSCONFIG, fs, 6u /* CMD_CREATE */, NULL, NULL, 0) < 0)
        return -1;
    return (int)syscall(KERNEL_NR_FSMOUNT, fs, 1u /* CLOEXEC */, attr);
}

static inline int kernel_mount_setattr(int fd, unsigned flags, struct kernel_mount_attr *attr)
{
    return (int)syscall(KERNEL_NR_MOUNT_SETATTR, fd, "", flags | KERNEL_AT_EMPTY_PATH, attr,
                        sizeof *attr);
}

static inline int kernel_pidfd_kill(int pidfd, int signal)
{
    return (int)syscall(KERNEL_NR_PIDFD_SEND_SIGNAL, pidfd, signal, NULL, 0);
}

struct kernel_landlock_ruleset {
    uint64_t fs, net, scoped;
};
struct kernel_landlock_path {
    uint64_t allowed;
    int32_t parent_fd;
} __attribute__((packed));

#define KERNEL_LANDLOCK_EXECUTE    (1ull << 0)
#define KERNEL_LANDLOCK_WRITE_FILE (1ull << 1)
#define KERNEL_LANDLOCK_READ_FILE  (1ull << 2)
#define KERNEL_LANDLOCK_READ_DIR   (1ull << 3)
#define KERNEL_LANDLOCK_MAKE_CHAR  (1ull << 6)
#define KERNEL_LANDLOCK_MAKE_BLOCK (1ull << 11)
#define KERNEL_LANDLOCK_TRUNCATE   (1ull << 14)
#define KERNEL_LANDLOCK_IOCTL_DEV  (1ull << 15)
#define KERNEL_LANDLOCK_NET_TCP    3ull /* bind and connect */
#define KERNEL_LANDLOCK_SCOPES     3ull /* abstract sockets and signals */

/* The ABI version of the running kernel, or -1 where Landlock is absent or off. */
static inline int kernel_landlock_abi(void)
{
    return (int)syscall(KERNEL_NR_LANDLOCK_CREATE, NULL, 0, 1u);
}
