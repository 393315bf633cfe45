/*
 * Cards and NCCL for ranks that are threads of one process. Built with comm_nccl.c into one shared
 * object, as the real ones are.
 *
 * It is strict where the real one is silent: messages begin in groups and on "cards" alone, nothing
 * is copied while a stream is busy, a piece has the length that is awaited. What it shall do wrong
 * is said by fake_nccl_wrong: "none" (no card), "begin R", "async R", "stuck R" with the rank.
 */
#include <assert.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORLDS 64
#define RANKS  8
#define BLOCKS 64
#define OPS    64

typedef struct Message {
    struct Message *next;
    size_t bytes;
    char data[];
} Message;

typedef struct {
    char name[32];
    int size, joined;
    Message *sent[RANKS][RANKS]; /* from, to; oldest first */
} World;

struct FakeComm {
    World *world;
    int rank, launched; /* messages */
};

typedef struct {
    struct FakeComm *comm;
    void *to;
    size_t bytes;
    int peer;
} Awaited;

struct FakeStream {
    Awaited awaited[OPS];
    int n, done, stuck;
};

typedef struct {
    int send, peer;
    void *data;
    size_t bytes;
    struct FakeComm *comm;
    struct FakeStream *stream;
} Op;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static World worlds[WORLDS];
static int n_worlds;
static struct {
    char *from;
    size_t bytes;
} blocks[BLOCKS]; /* of the card */
static __thread Op ops[OPS];
static __thread int n_ops, depth;

extern const char *fake_nccl_wrong;
extern size_t fake_nccl_smallest, fake_nccl_pieces;
const char *fake_nccl_wrong;                              /* what to do wrong; NULL: nothing */
size_t fake_nccl_smallest = (size_t)-1, fake_nccl_pieces; /* of what was sent */

/* Shall rank `rank` do this wrong? */
static int wrong(const char *what, int rank)
{
    size_t n = strlen(what);

    return fake_nccl_wrong && !strncmp(fake_nccl_wrong, what, n) &&
           fake_nccl_wrong[n] == '0' + rank;
}

/* ---- the card ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = fake_nccl_wrong && !strcmp(fake_nccl_wrong, "none") ? 0 : 1;
    return cudaSuccess;
}

static int on_card(const void *at, size_t bytes)
{
    int found = 0;

    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS; i++)
        found |= blocks[i].from && (const char *)at >= blocks[i].from &&
                 (const char *)at + bytes <= blocks[i].from + blocks[i].bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    *memory = malloc(bytes);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS; i++)
        if (!blocks[i].from) {
            blocks[i].from = *memory;
            blocks[i].bytes = bytes;
            break;
        }
    pthread_mutex_unlock(&lock);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *memory)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; memory && i < BLOCKS; i++)
        if (blocks[i].from == memory)
            blocks[i].from = NULL;
    pthread_mutex_unlock(&lock);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    assert(flags == cudaStreamNonBlocking);
    *stream = calloc(1, sizeof **stream);
    return *stream ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    free(stream);
    return cudaSuccess;
}

/* Takes what has come of what is awaited, in order. */
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    pthread_mutex_lock(&lock);
    while (s->done < s->n) {
        Awaited *a = &s->awaited[s->done];
        Message **sent = &a->comm->world->sent[a->peer][a->comm->rank], *m = *sent;

        if (!m)
            break;
        assert(m->bytes == a->bytes);
        memcpy(a->to, m->data, m->bytes);
        *sent = m->next;
        free(m);
        s->done++;
    }
    pthread_mutex_unlock(&lock);
    return s->done < s->n || s->stuck ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    assert(kind == cudaMemcpyDefault);
    assert(stream->done == stream->n);
    assert(on_card(to, bytes) != on_card(from, bytes));
    memcpy(to, from, bytes);
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t code)
{
    return code == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}

/* ---- NCCL ---- */

ncclResult_t ncclGetVersion(int *version)
{
    *version = 22809;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    pthread_mutex_lock(&lock);
    assert(n_worlds < WORLDS);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "world %d", n_worlds);
    snprintf(worlds[n_worlds].name, sizeof worlds[n_worlds].name, "world %d", n_worlds);
    n_worlds++;
    pthread_mutex_unlock(&lock);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    World *world = NULL;

    assert(config->blocking == 0 && ranks <= RANKS);
    if (wrong("begin ", rank))
        return ncclInternalError;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_worlds; i++)
        if (!strcmp(worlds[i].name, id.internal))
            world = &worlds[i];
    assert(world);
    world->size = ranks;
    world->joined++;
    pthread_mutex_unlock(&lock);
    *comm = calloc(1, sizeof **comm);
    **comm = (struct FakeComm){.world = world, .rank = rank};
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    pthread_mutex_lock(&lock);
    *state = comm->world->joined < comm->world->size ? ncclInProgress : ncclSuccess;
    pthread_mutex_unlock(&lock);
    if (*state == ncclSuccess && comm->launched > 0 && wrong("async ", comm->rank))
        *state = ncclRemoteError;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    (void)comm;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    World *world = comm->world;

    pthread_mutex_lock(&lock);
    for (int from = 0; from < RANKS; from++) /* what nobody will ask for */
        while (world->sent[from][comm->rank]) {
            Message *m = world->sent[from][comm->rank];

            world->sent[from][comm->rank] = m->next;
            free(m);
        }
    pthread_mutex_unlock(&lock);
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    assert(depth == 0);
    depth = 1;
    n_ops = 0;
    return ncclSuccess;
}

static ncclResult_t begin(int send, void *data, size_t bytes, int peer, struct FakeComm *comm,
                          struct FakeStream *stream)
{
    assert(depth == 1 && n_ops < OPS && bytes > 0 && peer != comm->rank);
    assert(peer < comm->world->size && on_card(data, bytes));
    ops[n_ops++] = (Op){send, peer, data, bytes, comm, stream};
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    assert(type == ncclUint8);
    return begin(1, (void *)(size_t)from, count, peer, comm, stream);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    assert(type == ncclUint8);
    return begin(0, to, count, peer, comm, stream);
}

static void launch(const Op *op)
{
    struct FakeStream *s = op->stream;
    Message **end = &op->comm->world->sent[op->comm->rank][op->peer];
    Message *m = NULL;

    op->comm->launched++;
    s->stuck = wrong("stuck ", op->comm->rank);
    if (!op->send) {
        s->awaited[s->n++] = (Awaited){op->comm, op->data, op->bytes, op->peer};
        return;
    }
    m = malloc(sizeof *m + op->bytes);
    *m = (Message){.bytes = op->bytes};
    memcpy(m->data, op->data, op->bytes);
    while (*end)
        end = &(*end)->next;
    *end = m;
    fake_nccl_pieces++;
    fake_nccl_smallest = op->bytes < fake_nccl_smallest ? op->bytes : fake_nccl_smallest;
}

ncclResult_t ncclGroupEnd(void)
{
    assert(depth == 1);
    depth = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_ops; i++)
        if (ops[i].stream->done == ops[i].stream->n)
            ops[i].stream->done = ops[i].stream->n = 0; /* the group before is through */
    for (int i = 0; i < n_ops; i++)
        launch(&ops[i]);
    pthread_mutex_unlock(&lock);
    return ncclInProgress;
}

const char *ncclGetErrorString(ncclResult_t code)
{
    return code == ncclRemoteError ? "remote process exited" : "internal error";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return comm ? "a card fell off" : "at the beginning";
}
