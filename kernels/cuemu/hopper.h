/*
 * What Hopper adds, over the CPU: barriers in shared memory, bulk copies, products of a warpgroup.
 * kernels/cuda/hopper.h gives these their names and says what each does.
 *
 * Everything asynchronous happens as late as a card may do it: a copy's room is poison until a
 * thread waits at its barrier, a product is taken when its group is waited for, from what registers
 * and shared memory hold by then. What threads write to shared memory is seen by products from the
 * next proxy fence on.
 */
#pragma once

#include "kernels/cuemu/cuemu.h"

void cuemu_barrier_init(uint64_t *barrier, int arrivals);
void cuemu_barrier_arrive(CuemuSite *site, uint64_t *barrier);
void cuemu_barrier_expect(CuemuSite *site, uint64_t *barrier, uint32_t bytes);
void cuemu_barrier_wait(CuemuSite *site, uint64_t *barrier, int parity);
void cuemu_bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *barrier);
void cuemu_proxy_fence(CuemuSite *site);

void cuemu_wgmma_fence(CuemuSite *site);
void cuemu_wgmma_commit(CuemuSite *site);
void cuemu_wgmma_wait(CuemuSite *site, int pending);
/* acc [n / 8][4]; `a` holds four registers, or is NULL and A lies at a_at. */
void cuemu_wgmma(int n, float *acc, const uint32_t *a, uint64_t a_at, uint64_t b_at);
/* Where dynamic shared memory lies in its window. */
uint32_t cuemu_smem_at(const void *at);
