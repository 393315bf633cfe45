/*
 * The longer attempts of the attacker: walks over whole trees, things that one box makes and
 * another looks for, and what takes a while.
 */
#include "tests/sandbox/payload.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define KEY       0x5151
#define HELD_NAME "assay-held"
#define HELD_PORT 45321

/* --- every file of a tree for writing ------------------------------------------------------ */

static int n_open;

static int try_to_write(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)at;
    if (kind != FTW_F || S_ISLNK(st->st_mode))
        return 0;
    static const int modes[] = {O_WRONLY, O_RDWR, O_WRONLY | O_APPEND};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        int fd = open(path, modes[i] | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
        if (fd < 0)
            continue;
        close(fd);
        if (n_open++ < 5)
            printf("%s opens for writing\n", path);
        return 0;
    }
    return 0;
}

/* The configuration of the host: nothing of it may open for writing. */
static int write_tree(const char *top)
{
    nftw(top, try_to_write, 32, FTW_PHYS);
    printf("%d\n", n_open);
    return 0;
}

/* --- a word that must be nowhere ----------------------------------------------------------- */

/* The word is given with every byte one too high, so that looking for it does not plant it. */
static const char *shifted;
static size_t shifted_len;
static long n_found, n_files;
static char carried[1 << 16];

static int holds(const char *at, size_t len)
{
    for (size_t i = 0; i + shifted_len <= len; i++) {
        size_t k = 0;
        while (k < shifted_len && (char)(at[i + k] + 1) == shifted[k])
            k++;
        if (k == shifted_len)
            return 1;
    }
    return 0;
}

static void found(const char *where)
{
    n_found++;
    printf("found in %s\n", where);
}

static void scan_fd(int fd, const char *where)
{
    size_t keep = 0;
    for (long total = 0; total < 8 << 20;) {
        ssize_t n = read(fd, carried + keep, sizeof carried - keep);
        if (n <= 0)
            return;
        size_t have = keep + (size_t)n;
        if (holds(carried, have)) {
            found(where);
            return;
        }
        keep = have < shifted_len ? have : shifted_len - 1;
        memmove(carried, carried + have - keep, keep);
        total += n;
    }
}

static int scan_file(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)at;
    if (kind == FTW_D && strcmp(path, "/usr") == 0)
        return FTW_SKIP_SUBTREE; /* the host's programs: the daemon writes nothing there */
    const char *name = strrchr(path, '/') + 1;
    if (kind == FTW_D && strcmp(name, "task") == 0)
        return FTW_SKIP_SUBTREE; /* a thread has what its process has */
    if (kind != FTW_F || !S_ISREG(st->st_mode) || strcmp(name, "mem") == 0 ||
        strcmp(name, "pagemap") == 0 || strncmp(name, "smaps", 5) == 0)
        return FTW_CONTINUE;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return FTW_CONTINUE;
    n_files++;
    scan_fd(fd, path);
    close(fd);
    return FTW_CONTINUE;
}

/* All memory of a process that its maps name and that can be read. */
static void scan_memory(const char *pid)
{
    static char block[1 << 16];
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    FILE *maps = fopen(path, "r");
    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    int mem = open(path, O_RDONLY);
    while (maps != NULL && mem >= 0 && fgets(line, sizeof line, maps) != NULL) {
        char *end = line;
        unsigned long from = strtoul(line, &end, 16), to = strtoul(end + 1, &end, 16);
        if (end[1] != 'r')
            continue;
        for (; from < to; from += sizeof block - shifted_len) {
            ssize_t n = pread(mem, block, sizeof block, (off_t)from);
            if (n > 0 && holds(block, (size_t)n))
                found(path);
            if (n <= 0)
                break;
        }
    }
    if (maps != NULL)
        fclose(maps);
    if (mem >= 0)
        close(mem);
}

static int scan(const char *word)
{
    shifted = word;
    shifted_len = strlen(word);
    if (shifted_len == 0 || shifted_len > 64)
        return 1;
    const char *const tops[] = {"/etc", "/proc", "/run", "/dev/shm", ".", getenv("TMPDIR")};
    nftw("/", scan_file, 32, FTW_PHYS | FTW_ACTIONRETVAL);
    long at_root = n_files;
    for (size_t i = 0; at_root == 0 && i < sizeof tops / sizeof *tops; i++)
        if (tops[i] != NULL) /* "/" may not be listed: what lies below it perhaps may */
            nftw(tops[i], scan_file, 32, FTW_PHYS | FTW_ACTIONRETVAL);
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
            scan_memory(entry->d_name);
    printf("%ld found, %s\n", n_found, n_files > 50 ? "looked" : "saw too little");
    return 0;
}

/* --- what one box makes and another must not see ------------------------------------------- */

static socklen_t abstract_address(struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path + 1, HELD_NAME, strlen(HELD_NAME));
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(HELD_NAME));
}

static struct sockaddr_in local_port(void)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(HELD_PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static int hold(void) __attribute__((noreturn));
static int hold(void)
{
    struct sockaddr_un name;
    struct sockaddr_in port = local_port();
    socklen_t len = abstract_address(&name);
    int local = socket(AF_UNIX, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);
    int ok = bind(local, (struct sockaddr *)&name, len) == 0 && listen(local, 1) == 0 &&
             bind(tcp, (struct sockaddr *)&port, sizeof port) == 0 && listen(tcp, 1) == 0 &&
             shmget(KEY, 4096, IPC_CREAT | 0666) >= 0 && semget(KEY, 1, IPC_CREAT | 0666) >= 0 &&
             msgget(KEY, IPC_CREAT | 0666) >= 0 &&
             open("/tmp/" HELD_NAME, O_CREAT | O_RDWR, 0666) >= 0 &&
             open("/dev/shm/" HELD_NAME, O_CREAT | O_RDWR, 0666) >= 0;
    puts(ok ? "held" : strerrorname_np(errno));
    for (;;)
        pause();
}

static int see(void)
{
    struct sockaddr_un name;
    struct sockaddr_in port = local_port();
    socklen_t len = abstract_address(&name);
    const struct {
        const char *what;
        long result;
    } seen[] = {
        {"abstract socket",
         connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, len)},
        {"port", connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&port, sizeof port)},
        {"shared memory", shmget(KEY, 0, 0)},
        {"semaphore", semget(KEY, 0, 0)},
        {"message queue", msgget(KEY, 0)},
        {"posix queue", mq_open("/" HELD_NAME, O_RDWR)},
        {"/tmp", open("/tmp/" HELD_NAME, O_RDONLY)},
        {"/dev/shm", open("/dev/shm/" HELD_NAME, O_RDONLY)},
        {"/dev/mqueue", open("/dev/mqueue/" HELD_NAME, O_RDONLY)},
    };
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
        if (seen[i].result >= 0)
            printf("%s\n", seen[i].what);
    return 0;
}

/* Tells of every event on what all boxes are shown; until it is ended. */
static int watch(void)
{
    static const char *const dirs[] = {"/usr",     "/usr/bin", "/usr/lib", "/etc",    "/payload",
                                       "/testbed", "/tmp",     "/dev",     "/dev/shm"};
    int fd = inotify_init();
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        inotify_add_watch(fd, dirs[i], IN_ALL_EVENTS);
    puts("watching");
    char events[4096];
    while (read(fd, events, sizeof events) > 0)
        puts("event");
    return 0;
}

/* --- bounds -------------------------------------------------------------------------------- */

static void *idle(void *data)
{
    pause();
    return data;
}

static int thread_bomb(void)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 65536);
    int n = 0;
    while (n < 100000 && pthread_create(&thread, &attr, idle, NULL) == 0)
        n++;
    puts(n < 100000 ? "bounded" : "unbounded");
    return 0;
}

/* Timers, event counters, queues and semaphores until the kernel refuses. */
static int objects(void)
{
    const int most = 1000000;
    int n[5] = {0};
    timer_t timer;
    char name[32];
    while (n[0] < most && timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0)
        n[0]++;
    while (n[1] < most && eventfd(0, 0) >= 0)
        n[1]++;
    for (int fd = 3; fd < n[1]; fd++)
        close(fd);
    while (n[2] < most && semget(IPC_PRIVATE, 1, 0600) >= 0)
        n[2]++;
    while (n[3] < most && msgget(IPC_PRIVATE, 0600) >= 0)
        n[3]++;
    do
        snprintf(name, sizeof name, "/q%d", n[4]);
    while (n[4] < most && mq_open(name, O_CREAT | O_RDWR, 0600, NULL) >= 0 && n[4]++ >= 0);
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        if (n[i] == most)
            return puts("unbounded");
    puts("bounded");
    return 0;
}

/* Bytes that lie in pipes or sockets and belong to nobody's address space. */
static int hog_queues(int is_socket)
{
    static char block[1 << 16];
    int ends[2];
    long total = 0;
    while (total < 256l << 20 &&
           (is_socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends)) == 0) {
        int size = 1 << 20;
        if (is_socket)
            setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        else
            fcntl(ends[1], F_SETPIPE_SZ, size);
        fcntl(ends[1], F_SETFL, O_NONBLOCK);
        for (ssize_t n; (n = write(ends[1], block, sizeof block)) > 0;)
            total += n;
    }
    printf("%ld MiB\n", total >> 20);
    return 0;
}

/* A directory in a directory ..., each with the longest name. */
static int deep(void)
{
    char name[256];
    memset(name, 'd', 255);
    name[255] = '\0';
    long n = 0;
    while (n < 100000 && mkdir(name, 0700) == 0 && chdir(name) == 0)
        n++;
    printf("%s %s\n", n < 100000 ? "bounded" : "unbounded", strerrorname_np(errno));
    return 0;
}

/* --- CPU time that somebody else ends up with ---------------------------------------------- */

static void burn(long ms)
{
    struct timespec now;
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < ms);
}

static void *burner(void *data)
{
    for (;;)
        burn((long)(intptr_t)data);
    return NULL;
}

static int spin_threads(void)
{
    pthread_t thread;
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, burner, (void *)(intptr_t)100);
    pause();
    return 0;
}

/* KIND: "orphans": a grandchild that init inherits, "short": many children, never waited for. */
static int burn_as(const char *kind)
{
    int ends[2], orphans = strcmp(kind, "orphans") == 0;
    char byte;
    if (pipe(ends) < 0)
        return 1;
    for (int i = 0; i < (orphans ? 1 : 40); i++) {
        if (fork() != 0)
            continue;
        if (orphans && fork() != 0)
            _exit(0);
        close(ends[0]);
        burn(orphans ? 300 : 8);
        _exit(0);
    }
    close(ends[1]);
    return (int)read(ends[0], &byte, 1); /* until the last has ended */
}

/* --- single attempts ----------------------------------------------------------------------- */

static int every_setns(void)
{
    DIR *dir = opendir("/proc/self/ns");
    int n = 0;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY);
        if (fd < 0 || entry->d_name[0] == '.')
            continue;
        n++;
        if (syscall(SYS_setns, fd, 0) == 0 || errno != EPERM)
            printf("%s %s\n", entry->d_name, strerrorname_np(errno));
    }
    puts(n >= 8 ? "refused" : "too few");
    return 0;
}

static int threads_and_spawn(char **argv)
{
    pthread_t thread;
    pid_t pid;
    int status = -1;
    char word[] = "true";
    char *const args[] = {argv[0], word, NULL};
    if (pthread_create(&thread, NULL, idle, NULL) != 0 ||
        posix_spawn(&pid, "/proc/self/exe", NULL, NULL, args, NULL) != 0 ||
        waitpid(pid, &status, 0) != pid)
        return 1;
    puts(status == 0 ? "ok" : "spawned, but it failed");
    return 0;
}

/* A copy of this program in memory, run by descriptor. */
static int run_from_memory(void)
{
    char chunk[65536], name[] = "payload", word[] = "hello";
    char *const args[] = {name, word, NULL}, *const none[] = {NULL};
    int from = open("/proc/self/exe", O_RDONLY), to = (int)syscall(SYS_memfd_create, "x", 0);
    for (ssize_t n; (n = read(from, chunk, sizeof chunk)) > 0;)
        if (write(to, chunk, (size_t)n) != n)
            return 1;
    fexecve(to, args, none);
    puts(strerrorname_np(errno));
    return 0;
}

/* Tricks to outlive init: no death signal, orphans of our own, a session of our own. */
static int outlive(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int i = 0; i < 3; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, 0);
            prctl(PR_SET_CHILD_SUBREAPER, 1);
            setsid();
            for (int sig = 1; sig < NSIG; sig++)
                signal(sig, SIG_IGN);
            if (fork() == 0)
                for (;;)
                    pause();
            for (;;)
                pause();
        }
    return 0;
}

/* From every descriptor upwards: never further than our own root. */
static int climb(void)
{
    struct stat root, up;
    stat("/", &root);
    for (int fd = 0; fd < 64; fd++) {
        int at = openat(fd, "../../../../../../../..", O_PATH | O_DIRECTORY);
        if (at >= 0 && fstat(at, &up) == 0 &&
            (up.st_ino != root.st_ino || up.st_dev != root.st_dev))
            printf("%d leads outside\n", fd);
    }
    puts("end");
    return 0;
}

static int truncated_map(void)
{
    int fd = open("mapped", O_CREAT | O_RDWR, 0600);
    if (ftruncate(fd, 8192) < 0)
        return 1;
    volatile char *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    at[4096] = 1;
    if (ftruncate(fd, 0) < 0)
        return 1;
    return at[4096]; /* SIGBUS */
}

/* Marks of the overlay, set from inside: opaque, redirect and the whiteout of new kernels. */
static int forge_marks(const char *dir)
{
    static const char *const names[] = {"user.overlay.opaque", "user.overlay.redirect",
                                        "user.overlay.whiteout", "user.overlay.metacopy",
                                        "user.overlay.origin"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        setxattr(dir, names[i], i == 1 ? "/" : "y", 1, 0);
    puts("end");
    return 0;
}

static int rename_it(const char *from)
{
    puts(rename(from, "renamed") == 0 ? "ok" : strerrorname_np(errno));
    return 0;
}

static int connect_to(const char *path, int port)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct sockaddr_in in = local_port();
    in.sin_port = htons((uint16_t)port);
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    int fd = socket(port > 0 ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
    int r = fd < 0     ? -1
            : port > 0 ? connect(fd, (struct sockaddr *)&in, sizeof in)
                       : connect(fd, (struct sockaddr *)&name, sizeof name);
    puts(r == 0 ? "ok" : strerrorname_np(errno));
    return 0;
}

/* Which pages of a file are in the page cache, as far as this process may know. */
static int residency(const char *path)
{
    int fd = open(path, O_RDONLY);
    unsigned char seen[64] = {0};
    void *at = mmap(NULL, 64 << 12, PROT_READ, MAP_SHARED, fd, 0);
    uint64_t range[2] = {0, 64 << 12}, stat[5] = {0};
    long cached = syscall(451, fd, range, stat, 0);
    int n = 0;
    if (at != MAP_FAILED && mincore(at, 64 << 12, seen) == 0)
        for (int i = 0; i < 64; i++)
            n += seen[i] & 1;
    printf("mincore %d, cachestat %s\n", n, cached == 0 ? "ok" : strerrorname_np(errno));
    return 0;
}

int payload_more(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*none)(void);
        int (*one)(const char *arg);
    } words[] = {
        {"write_tree", NULL, write_tree},
        {"scan", NULL, scan},
        {"hold", hold, NULL},
        {"see", see, NULL},
        {"watch", watch, NULL},
        {"thread_bomb", thread_bomb, NULL},
        {"objects", objects, NULL},
        {"deep", deep, NULL},
        {"spin_threads", spin_threads, NULL},
        {"burn_as", NULL, burn_as},
        {"every_setns", every_setns, NULL},
        {"run_from_memory", run_from_memory, NULL},
        {"outlive", outlive, NULL},
        {"climb", climb, NULL},
        {"truncated_map", truncated_map, NULL},
        {"forge_marks", NULL, forge_marks},
        {"rename", NULL, rename_it},
        {"residency", NULL, residency},
    };
    const char *arg = argc > 2 ? argv[2] : "";
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(argv[1], words[i].name) == 0)
            return words[i].none != NULL ? words[i].none() : words[i].one(arg);
    if (strcmp(argv[1], "true") == 0)
        return 0;
    if (strcmp(argv[1], "hello") == 0)
        return puts("ok") < 0;
    if (strcmp(argv[1], "ids") == 0)
        return printf("%d %d %d %d\n", getuid(), geteuid(), getgid(), getegid()) < 0;
    if (strcmp(argv[1], "threads_and_spawn") == 0)
        return threads_and_spawn(argv);
    if (strcmp(argv[1], "hog_queues") == 0)
        return hog_queues(strcmp(arg, "sockets") == 0);
    if (strcmp(argv[1], "connect") == 0)
        return connect_to(arg, argc > 3 ? (int)strtoul(argv[3], NULL, 10) : 0);
    return -1;
}
