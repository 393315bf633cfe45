/*
 * Graphs of launches over the CPU: chains of kernels, run in order when they are launched.
 *
 * Invariants
 *  1. A graph keeps copies of its nodes' arguments, and what is made of it has copies of its own:
 *     what a caller changes afterwards reaches neither.
 *  2. Only chains are emulated: each node comes after the one before it. Anything else, a node of
 *     another graph and another kernel in a node's place are refused, as a card refuses them.
 *
 * Not here: running a kernel (cuemu.cpp).
 */
#include "kernels/cuemu/cuemu.h"

#include <deque>
#include <vector>

struct CuemuNode {
    const CuemuGraph *graph;
    size_t number;
    const void *kernel;
    dim3 grid, block;
    size_t smem;
    std::vector<std::vector<char>> args;
};

struct CuemuGraph {
    std::deque<CuemuNode> nodes; /* those that are there do not move */
};

struct CuemuExec {
    const CuemuGraph *graph;
    std::vector<CuemuNode> nodes;
};

static CuemuGraphs graphs;

static void fill(CuemuNode *node, const cudaKernelNodeParams *params)
{
    const CuemuKernel &kernel = cuemu_noted(params->func);

    node->kernel = params->func;
    node->grid = params->gridDim;
    node->block = params->blockDim;
    node->smem = params->sharedMemBytes;
    node->args.clear();
    for (size_t i = 0; i < kernel.n; i++) {
        const char *from = static_cast<const char *>(params->kernelParams[i]);

        node->args.emplace_back(from, from + kernel.sizes[i]);
    }
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned)
{
    *graph = new CuemuGraph;
    return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph,
                                   const cudaGraphNode_t *after, size_t n_after,
                                   const cudaKernelNodeParams *params)
{
    size_t n = graph->nodes.size();

    if (n_after != (n > 0) || (n > 0 && after[0] != &graph->nodes.back()))
        return cudaErrorInvalidValue;
    graph->nodes.push_back({graph, n, nullptr, 0, 0, 0, {}});
    fill(&graph->nodes.back(), params);
    *node = &graph->nodes.back();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new CuemuExec{graph, {graph->nodes.begin(), graph->nodes.end()}};
    graphs.made++;
    graphs.held++;
    return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params)
{
    if (node->graph != exec->graph || params->func != node->kernel)
        return cudaErrorInvalidValue;
    fill(&exec->nodes[node->number], params);
    graphs.changed++;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (CuemuNode &node : exec->nodes) {
        std::vector<void *> args;

        for (std::vector<char> &arg : node.args)
            args.push_back(arg.data());
        cudaLaunchKernel(node.kernel, node.grid, node.block, args.data(), node.smem, stream);
    }
    graphs.launched++;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    graphs.held--;
    return cudaSuccess;
}

CuemuGraphs cuemu_graphs(void)
{
    return graphs;
}
