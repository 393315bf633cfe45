/*
 * Graphs of launches: a list that was met before is launched as the graph that was made of it.
 *
 * Invariants
 *  1. A graph runs the list it is given, whatever it was made of: it is one of the same kernels in
 *     the same order, and every launch is compared; where blocks, shared memory or a byte of the
 *     arguments differ the node is changed. So there is no key, and nothing to guess.
 *  2. Nodes are a chain: the order of ops is the order on the card.
 *  3. At most GRAPHS_MAX graphs are kept; the one unused longest goes.
 *
 * Not here: making lists, staging, waiting (device.cu).
 */
#include "kernels/cuda/launch.h"

#include <stdlib.h>
#include <string.h>

/* Prefill and decode, short contexts and long, each with what its number of sequences makes. */
#define GRAPHS_MAX 8

/* `list` holds what the graph's nodes are set to. */
typedef struct {
    Launches list;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaGraphNode_t *nodes;
    uint64_t used; /* when; 0: none is here */
} Graph;

static Graph graphs[GRAPHS_MAX];
static uint64_t now;

static cudaKernelNodeParams params_of(void *args[LAUNCH_ARGS_MAX], const Launches *list, size_t i)
{
    const Launch *launch = &list->items[i];
    cudaKernelNodeParams params = {};

    launch_args(args, list, i);
    params.func = (void *)(uintptr_t)launch->kernel;
    params.gridDim = launch->grid;
    params.blockDim = launch->block;
    params.sharedMemBytes = (unsigned)launch->smem;
    params.kernelParams = args;
    return params;
}

static void make(Graph *g, const Launches *list)
{
    void *args[LAUNCH_ARGS_MAX];

    g->nodes = (cudaGraphNode_t *)calloc(list->n, sizeof *g->nodes);
    if (!g->nodes)
        cuda_check(cudaErrorMemoryAllocation, "make a graph");
    cuda_check(cudaGraphCreate(&g->graph, 0), "make a graph");
    for (size_t i = 0; i < list->n; i++) {
        cudaKernelNodeParams params = params_of(args, list, i);

        cuda_check(cudaGraphAddKernelNode(&g->nodes[i], g->graph, i > 0 ? &g->nodes[i - 1] : NULL,
                                          i > 0, &params),
                   "add to a graph");
    }
    cuda_check(cudaGraphInstantiate(&g->exec, g->graph, 0), "make a graph");
}

static void drop(Graph *g)
{
    if (g->used == 0)
        return;
    cuda_check(cudaGraphExecDestroy(g->exec), "drop a graph");
    cuda_check(cudaGraphDestroy(g->graph), "drop a graph");
    free(g->nodes);
}

static int same_size(dim3 a, dim3 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z;
}

static int same_launch(const Launches *a, const Launches *b, size_t i)
{
    const Launch *x = &a->items[i], *y = &b->items[i];

    return same_size(x->grid, y->grid) && same_size(x->block, y->block) && x->smem == y->smem &&
           memcmp(a->args + x->first, b->args + y->first, x->bytes) == 0;
}

static void change(Graph *g, const Launches *list)
{
    void *args[LAUNCH_ARGS_MAX];

    for (size_t i = 0; i < list->n; i++) {
        if (same_launch(&g->list, list, i))
            continue;
        cudaKernelNodeParams params = params_of(args, list, i);

        cuda_check(cudaGraphExecKernelNodeSetParams(g->exec, g->nodes[i], &params),
                   "change a graph");
    }
}

static int same_kernels(const Launches *a, const Launches *b)
{
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++)
        if (a->items[i].kernel != b->items[i].kernel)
            return 0;
    return 1;
}

/* The graph of the list's kernels, or the one whose place a new one takes. */
static Graph *place_of(const Launches *list, int *found)
{
    Graph *oldest = &graphs[0];

    for (int i = 0; i < GRAPHS_MAX; i++) {
        *found = graphs[i].used > 0 && same_kernels(&graphs[i].list, list);
        if (*found)
            return &graphs[i];
        oldest = graphs[i].used < oldest->used ? &graphs[i] : oldest;
    }
    return oldest;
}

void graph_run(Launches *list)
{
    int found;
    Graph *g = place_of(list, &found);
    Launches before = g->list;

    if (found) {
        change(g, list);
    } else {
        drop(g);
        make(g, list);
    }
    g->list = *list;
    *list = before;
    g->used = ++now;
    cuda_check(cudaGraphLaunch(g->exec, 0), "launch a graph");
}
