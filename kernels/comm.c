/*
 * Collectives over one primitive, an exchange of messages between all ranks of a group.
 *
 * Invariants
 *  1. An element is added up on one rank, in the order of ranks, and copied from there: all ranks
 *     have its bits. Cutting an array into messages moves elements, it never regroups a sum.
 *  2. Messages of sums are at most SEGMENT elements, so scratch does not grow with arrays.
 *  3. Nothing is sent to oneself, and nothing of length 0.
 *
 * Not here: how a message travels (comm_local.c, comm_mpi.c).
 */
#include "kernels/comm_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEGMENT ((size_t)1 << 17)

/* ---- groups ---- */

Comm *comm_world_group(CommWorld *w)
{
    Comm *c = calloc(1, sizeof *c);
    int *members = calloc((size_t)w->size, sizeof *members);

    if (!c || !members) {
        free(c);
        free(members);
        return NULL;
    }
    for (int r = 0; r < w->size; r++)
        members[r] = r;
    *c = (Comm){.rank = w->rank, .size = w->size, .members = members, .world = w};
    w->groups = w->open = 1;
    w->here = w->size;
    return c;
}

static size_t part_of(const size_t *ends, int r)
{
    return r > 0 ? ends[r - 1] : 0;
}

/* Every rank's number, of those of the group. */
static bool gather_ints(Comm *c, int *all, int mine, size_t *ends)
{
    for (int r = 0; r < c->size; r++)
        ends[r] = (size_t)(r + 1) * sizeof(int);
    all[c->rank] = mine;
    return comm_all_gather(c, all, ends);
}

Comm *comm_split(Comm *c, int color)
{
    size_t n = (size_t)c->size;
    size_t *ends = calloc(n, sizeof *ends);
    int *colors = calloc(n, sizeof *colors), *numbers = calloc(n, sizeof *numbers);
    int *members = calloc(n, sizeof *members);
    Comm *part = calloc(1, sizeof *part);
    bool ok = ends && colors && numbers && members && part;

    if (!ok)
        comm_world_fail(c->world, "split", c->world->rank, "no memory");
    ok = ok && gather_ints(c, colors, color, ends) &&
         gather_ints(c, numbers, c->world->groups, ends);
    if (ok) {
        *part = (Comm){.members = members, .world = c->world};
        for (int r = 0; r < c->size; r++) {
            part->number = numbers[r] > part->number ? numbers[r] : part->number;
            if (r == c->rank)
                part->rank = part->size;
            if (colors[r] == color)
                members[part->size++] = c->members[r];
        }
        c->world->groups = part->number + 1;
        c->world->open++;
    } else {
        free(members);
        free(part);
        part = NULL;
    }
    free(ends);
    free(colors);
    free(numbers);
    return part;
}

void comm_close(Comm *c)
{
    CommWorld *w = c ? c->world : NULL;

    if (!c)
        return;
    free(c->members);
    free(c);
    if (--w->open > 0)
        return;
    free(w->scratch);
    w->end(w);
}

int comm_here(const Comm *c)
{
    return c->world->here;
}

void comm_timeout(Comm *c, double seconds)
{
    c->world->wait_s = seconds;
}

/* ---- failure ---- */

bool comm_world_fail(CommWorld *w, const char *what, int rank, const char *why)
{
    if (w->failed)
        return false;
    w->failed = true;
    w->fail.rank = rank;
    snprintf(w->fail.text, sizeof w->fail.text, "rank %d of %d: %s: %s", w->rank, w->size, what,
             why);
    return false;
}

bool comm_failed(const Comm *c, CommFail *fail)
{
    if (c->world->failed && fail)
        *fail = c->world->fail;
    return c->world->failed;
}

void comm_fail(Comm *c, const char *why)
{
    comm_world_fail(c->world, "stopped", c->world->rank, why);
}

/* ---- moves ---- */

/* All ranks of the group exchange: sends[r] and recvs[r] are those with rank r. */
static bool exchange(Comm *c, const char *what, CommPart *sends, CommPart *recvs)
{
    int n_sends = 0, n_recvs = 0;

    if (c->world->failed)
        return false;
    for (int i = 1; i < c->size; i++) { /* not all to rank 0 at first */
        int r = (c->rank + i) % c->size;

        sends[r].peer = recvs[r].peer = c->members[r];
    }
    for (int r = 0; r < c->size; r++) {
        if (r != c->rank && sends[r].bytes > 0)
            sends[n_sends++] = sends[r];
        if (r != c->rank && recvs[r].bytes > 0)
            recvs[n_recvs++] = recvs[r];
    }
    return (n_sends == 0 && n_recvs == 0) ||
           c->world->exchange(c->world, c->number, what, sends, n_sends, recvs, n_recvs);
}

/* Room for a message to and from every rank; NULL: it failed. */
static CommPart *parts_new(Comm *c, const char *what)
{
    CommPart *parts = calloc(2 * (size_t)c->size, sizeof *parts);

    if (!parts)
        comm_world_fail(c->world, what, c->world->rank, "no memory");
    return parts;
}

bool comm_all_to_all(Comm *c, const void *send, const size_t *send_ends, void *recv,
                     const size_t *recv_ends)
{
    CommPart *parts = parts_new(c, "all-to-all");
    size_t own = part_of(send_ends, c->rank), to = part_of(recv_ends, c->rank);
    bool ok = parts != NULL;

    for (int r = 0; ok && r < c->size; r++) {
        size_t from = part_of(send_ends, r), at = part_of(recv_ends, r);

        parts[r] = (CommPart){0, (char *)(size_t)send + from, send_ends[r] - from};
        parts[c->size + r] = (CommPart){0, (char *)recv + at, recv_ends[r] - at};
    }
    if (ok && send_ends[c->rank] > own)
        memcpy((char *)recv + to, (const char *)send + own, send_ends[c->rank] - own);
    ok = ok && exchange(c, "all-to-all", parts, parts + c->size);
    free(parts);
    return ok;
}

bool comm_all_gather(Comm *c, void *data, const size_t *ends)
{
    CommPart *parts = parts_new(c, "all-gather");
    bool ok = parts != NULL;

    for (int r = 0; ok && r < c->size; r++) {
        size_t mine = part_of(ends, c->rank), from = part_of(ends, r);

        parts[r] = (CommPart){0, (char *)data + mine, ends[c->rank] - mine};
        parts[c->size + r] = (CommPart){0, (char *)data + from, ends[r] - from};
    }
    ok = ok && exchange(c, "all-gather", parts, parts + c->size);
    free(parts);
    return ok;
}

bool comm_broadcast(Comm *c, int root, void *data, size_t bytes)
{
    CommPart *parts = parts_new(c, "broadcast");
    bool ok = parts != NULL;

    for (int r = 0; ok && r < c->size; r++) {
        parts[r] = (CommPart){0, data, c->rank == root ? bytes : 0};
        parts[c->size + r] = (CommPart){0, data, c->rank != root && r == root ? bytes : 0};
    }
    ok = ok && exchange(c, "broadcast", parts, parts + c->size);
    free(parts);
    return ok;
}

bool comm_barrier(Comm *c)
{
    CommPart *parts = parts_new(c, "barrier");
    char *told = calloc((size_t)c->size, 1), word = 1;
    bool ok = parts && told;

    for (int r = 0; ok && r < c->size; r++) {
        parts[r] = (CommPart){0, &word, 1};
        parts[c->size + r] = (CommPart){0, told + r, 1};
    }
    ok = ok && exchange(c, "barrier", parts, parts + c->size);
    free(parts);
    free(told);
    return ok;
}

/* ---- sums ---- */

static void add(CommReal real, void *to, const void *from, size_t n)
{
    if (real == COMM_F64)
        for (size_t i = 0; i < n; i++)
            ((double *)to)[i] += ((const double *)from)[i];
    else
        for (size_t i = 0; i < n; i++)
            ((float *)to)[i] += ((const float *)from)[i];
}

static char *scratch_of(Comm *c, const char *what, size_t bytes)
{
    CommWorld *w = c->world;

    if (w->scratch_bytes < bytes) {
        free(w->scratch);
        w->scratch = malloc(bytes);
        w->scratch_bytes = w->scratch ? bytes : 0;
    }
    if (!w->scratch)
        comm_world_fail(w, what, w->rank, "no memory");
    return w->scratch;
}

static size_t clip(size_t at, size_t end)
{
    return at < end ? at : end;
}

/* Elements done .. done + SEGMENT of every rank's part: mine are added up here; `fresh`: onto
 * nothing. */
static bool reduce_segment(Comm *c, CommReal real, char *own, const char *x, const size_t *ends,
                           size_t done, CommPart *parts, bool fresh)
{
    size_t size = real == COMM_F64 ? sizeof(double) : sizeof(float);
    size_t first = part_of(ends, c->rank),
           n = clip(SEGMENT, ends[c->rank] - clip(first + done, ends[c->rank]));
    char *landing = scratch_of(c, "reduce-scatter", (size_t)c->size * SEGMENT * size);

    if (!landing)
        return false;
    for (int r = 0; r < c->size; r++) {
        size_t at = clip(part_of(ends, r) + done, ends[r]);

        parts[r] = (CommPart){0, (char *)(size_t)x + at * size, clip(SEGMENT, ends[r] - at) * size};
        parts[c->size + r] = (CommPart){0, landing + (size_t)r * SEGMENT * size, n * size};
    }
    if (!exchange(c, "reduce-scatter", parts, parts + c->size))
        return false;
    for (int r = 0; r < c->size && n > 0; r++) {
        const char *from =
            r == c->rank ? x + (first + done) * size : landing + (size_t)r * SEGMENT * size;

        if (fresh && r == 0)
            memmove(own + done * size, from, n * size);
        else
            add(real, own + done * size, from, n);
    }
    return true;
}

static bool reduce(Comm *c, CommReal real, void *own, const void *x, const size_t *ends, bool fresh)
{
    CommPart *parts = parts_new(c, "reduce-scatter");
    bool ok = parts != NULL;
    size_t longest = 0;

    for (int r = 0; r < c->size; r++)
        if (ends[r] - part_of(ends, r) > longest)
            longest = ends[r] - part_of(ends, r);
    for (size_t done = 0; ok && done < longest; done += SEGMENT)
        ok = reduce_segment(c, real, own, x, ends, done, parts, fresh);
    free(parts);
    return ok;
}

bool comm_reduce_scatter(Comm *c, CommReal real, void *own, const void *x, const size_t *ends)
{
    return reduce(c, real, own, x, ends, false);
}

bool comm_all_reduce(Comm *c, CommReal real, void *x, size_t n)
{
    size_t size = real == COMM_F64 ? sizeof(double) : sizeof(float);
    size_t *ends = c->size > 1 ? calloc((size_t)c->size, sizeof *ends) : NULL;
    char *own = NULL;
    bool ok;

    if (c->size == 1)
        return !c->world->failed;
    for (int r = 0; ends && r < c->size; r++)
        ends[r] = n * (size_t)(r + 1) / (size_t)c->size;
    if (ends) /* a sum of its own: a later segment still reads x */
        own = malloc((ends[c->rank] - part_of(ends, c->rank)) * size + 1);
    ok = own != NULL || comm_world_fail(c->world, "all-reduce", c->world->rank, "no memory");
    ok = ok && reduce(c, real, own, x, ends, true);
    if (ok) {
        memcpy((char *)x + part_of(ends, c->rank) * size, own,
               (ends[c->rank] - part_of(ends, c->rank)) * size);
        for (int r = 0; r < c->size; r++)
            ends[r] *= size;
        ok = comm_all_gather(c, x, ends);
    }
    free(ends);
    free(own);
    return ok;
}
