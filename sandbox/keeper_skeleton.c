/*
 * The lowest layer of a box's root: mount points, and in host mode the generated part of /etc.
 *
 * It is made below "skel" of the base tmpfs (keeper_tree.c), half of it before the spec is known.
 *
 * Invariants:
 *   1. Of the host's files only the linker's cache and configuration are copied, and with the
 *      host's network the resolver's: no accounts, no keys, no host name.
 *   2. Nothing here follows a link: the skeleton is fresh and only we write to it.
 *
 * Not here: mounting anything.
 */
#include "sandbox/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const keeper_etc_dirs[] = {"alternatives", "java-17-openjdk", "ssl",
                                       "ld.so.conf.d", "ca-certificates", NULL};

/* mkdir -p of an absolute path below the relative directory TOP. */
static int make_dirs(const char *top, const char *path, mode_t mode)
{
    char full[SPEC_PATH_MAX + 64];
    size_t len = (size_t)snprintf(full, sizeof full, "%s%s", top, path);
    size_t start = strlen(top) + 1;
    for (size_t i = start; i <= len; i++) {
        if (full[i] != '/' && full[i] != '\0')
            continue;
        full[i] = '\0';
        if (mkdir(full, i == len ? mode : 0755) < 0 && errno != EEXIST)
            return -1;
        if (i < len)
            full[i] = '/';
    }
    return 0;
}

static int write_file(const char *name, const char *text)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    close(fd);
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* Copies a small host file into the skeleton; an absent one is not an error. */
static void copy_file(const char *from, const char *to)
{
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (in < 0)
        return;
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    char chunk[65536];
    ssize_t n;
    while (out >= 0 && (n = read(in, chunk, sizeof chunk)) > 0)
        if (write(out, chunk, (size_t)n) != n)
            break;
    if (out >= 0)
        close(out);
    close(in);
}

static int write_users(const SpecOpen *open)
{
    char text[512];
    const char *box = open->uid == 0 ? "" : "box:x:%u:%u:box:/home/box:/bin/sh\n";
    size_t len = (size_t)snprintf(text, sizeof text, "root:x:0:0:root:/root:/bin/sh\n");
    if (*box != '\0')
        len += (size_t)snprintf(text + len, sizeof text - len,
                                "box:x:%u:%u:box:/home/box:/bin/sh\n", open->uid, open->gid);
    snprintf(text + len, sizeof text - len,
             "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    if (write_file("skel/etc/passwd", text) < 0)
        return -1;

    len = (size_t)snprintf(text, sizeof text, "root:x:0:\ntty:x:5:\n");
    if (open->gid != 0)
        len += (size_t)snprintf(text + len, sizeof text - len, "box:x:%u:\n", open->gid);
    snprintf(text + len, sizeof text - len, "nogroup:x:65534:\n");
    return write_file("skel/etc/group", text);
}

static int write_names(const SpecOpen *open)
{
    char hosts[256];
    snprintf(hosts, sizeof hosts, "127.0.0.1 localhost %s\n::1 localhost ip6-localhost\n",
             open->hostname);
    return write_users(open) < 0 || write_file("skel/etc/hosts", hosts) < 0 ? -1 : 0;
}

/* Names that programs ask for without a thought; the same on every host. */
static int write_services(void)
{
    static const char services[] =
        "echo 7/tcp\necho 7/udp\ndiscard 9/tcp sink null\ndiscard 9/udp sink null\n"
        "daytime 13/tcp\ndaytime 13/udp\nftp 21/tcp\nssh 22/tcp\ntelnet 23/tcp\nsmtp 25/tcp mail\n"
        "domain 53/tcp\ndomain 53/udp\nhttp 80/tcp www\npop3 110/tcp\nntp 123/udp\nimap2 143/tcp "
        "imap\nhttps 443/tcp\nhttps 443/udp\n";
    static const char protocols[] = "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\n"
                                    "ipv6-icmp 58 IPv6-ICMP\n";
    return write_file("skel/etc/services", services) < 0
               ? -1
               : write_file("skel/etc/protocols", protocols);
}

static int write_etc(uint32_t flags)
{
    if (write_file("skel/etc/nsswitch.conf",
                   "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
                   "networks: files\nprotocols: files\nservices: files\n") < 0 ||
        write_services() < 0 || symlink("../usr/lib/os-release", "skel/etc/os-release") < 0 ||
        symlink("/usr/share/zoneinfo/Etc/UTC", "skel/etc/localtime") < 0)
        return -1;
    copy_file("/etc/ld.so.cache", "skel/etc/ld.so.cache");
    copy_file("/etc/ld.so.conf", "skel/etc/ld.so.conf");
    if (!(flags & SPEC_OPEN_NET_HOST)) /* asks 127.0.0.1, which refuses at once */
        return write_file("skel/etc/resolv.conf", "options timeout:1 attempts:1\n");
    copy_file("/etc/resolv.conf", "skel/etc/resolv.conf");
    return 0;
}

static int host_links(void)
{
    static const char *const links[] = {"bin", "sbin", "lib", "lib32", "lib64", "libx32"};
    char target[32], name[48];
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        struct stat st;
        snprintf(name, sizeof name, "/usr/%s", links[i]);
        if (stat(name, &st) < 0)
            continue;
        snprintf(target, sizeof target, "usr/%s", links[i]);
        snprintf(name, sizeof name, "skel/%s", links[i]);
        if (symlink(target, name) < 0)
            return -1;
    }
    return 0;
}

int keeper_skeleton_base(uint32_t flags, Fail *failed)
{
    static const struct {
        const char *path;
        mode_t mode;
    } dirs[] = {{"/proc", 0555}, {"/sys", 0555},      {"/dev", 0755},     {"/tmp", 0755},
                {"/run", 0755},  {"/var/tmp", 01777}, {"/etc", 0755},     {"/root", 0700},
                {"/home", 0755}, {"/opt", 0755},      {"/var/lib", 0755}, {"/var/cache", 0755}};
    char name[64];
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (make_dirs("skel", dirs[i].path, dirs[i].mode) < 0)
            return fail(failed, "make the skeleton", dirs[i].path);
    if (chmod("skel/var/tmp", 01777) < 0)
        return fail(failed, "make the skeleton", "/var/tmp");
    if (!(flags & SPEC_OPEN_HOST_ROOT))
        return 0; /* a whole root file system has the rest */
    for (const char *const *dir = keeper_etc_dirs; *dir != NULL; dir++) {
        snprintf(name, sizeof name, "skel/etc/%s", *dir);
        if (mkdir(name, 0755) < 0)
            return fail(failed, "make", name);
    }
    if (mkdir("skel/usr", 0755) < 0 || host_links() < 0 || write_etc(flags) < 0)
        return fail(failed, "make the skeleton", NULL);
    return 0;
}

int keeper_skeleton_box(const SpecOpen *open, Fail *failed)
{
    for (uint32_t i = 0; i < open->n_mounts; i++)
        if (make_dirs("skel", open->mount_paths[i], 0755) < 0)
            return fail(failed, "make a mount point", open->mount_paths[i]);
    if (make_dirs("skel", open->work_path, 0755) < 0)
        return fail(failed, "make the workspace's mount point", NULL);
    if (open->uid != 0 &&
        (mkdir("skel/home/box", 0755) < 0 || chown("skel/home/box", open->uid, open->gid) < 0))
        return fail(failed, "make the home directory", NULL);
    if ((open->flags & SPEC_OPEN_HOST_ROOT) && write_names(open) < 0)
        return fail(failed, "write users and hosts", NULL);
    return 0;
}
