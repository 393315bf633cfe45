/*
 * Launches as a list: made by the host side of ops (device.cu), and what graphs are made of
 * (graph.cu).
 */
#pragma once

#include "kernels/cuda/cuda.h"

#define LAUNCH_ARGS_MAX 16

/* A kernel's launch. Argument i of n lies at first + at[i] of the list's args; all of them are
 * `bytes` bytes, gaps between them zero. */
typedef struct {
    const void *kernel;
    dim3 grid, block;
    size_t smem, first, bytes;
    int n, at[LAUNCH_ARGS_MAX];
} Launch;

typedef struct {
    Launch *items;
    char *args;
    size_t n, items_room, args_used, args_room;
} Launches;

/* Where a launch's arguments lie. */
static inline void launch_args(void *args[LAUNCH_ARGS_MAX], const Launches *list, size_t i)
{
    const Launch *launch = &list->items[i];

    for (int a = 0; a < launch->n; a++)
        args[a] = list->args + launch->first + launch->at[a];
}

/* Runs the list as one graph. The list is taken: what stands in its place has to be emptied. */
void graph_run(Launches *list);
