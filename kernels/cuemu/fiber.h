/*
 * What the other files of the shim may ask of its scheduler. Kernels see cuemu.h and hopper.h.
 */
#pragma once

#include "kernels/cuemu/cuemu.h"

#define CUEMU_LANES       32
#define CUEMU_THREADS_MAX 1024

/* What a thread waits for apart from the threads of its warp or block. */
struct CuemuEvent {
    int barrier, parity;
};

/* The calling thread's number in its block. */
int cuemu_thread(void);
/* Keeps the site among those that tests see. */
void cuemu_meet(CuemuSite *site);
/* Waits for the other lanes of the warp at the same site. */
void cuemu_wait_warp(const CuemuSite *site);
/* Gives way until cuemu_event_done. */
void cuemu_wait_event(CuemuEvent event, const CuemuSite *site);
[[noreturn]] void cuemu_fail(const char *what, const CuemuSite *site);

/* hopper.cpp: asked again and again while a thread waits. */
bool cuemu_event_done(CuemuEvent event);
/* Before and after a block's threads run; `smem` bytes of dynamic shared memory. */
void cuemu_hopper_begin(size_t smem);
void cuemu_hopper_end(int threads);
