/*
 * The CUDA table that a test is about: over the shim (card_emu.c) or of a real card (card_real.c).
 */
#pragma once

#include "kernels/ops.h"

/* NULL where there is none; the test then skips with card_missing(). */
const Ops *card_ops(void);
const char *card_missing(void);
/* Whether it reads memory from malloc, which models are in. */
int card_reads_host(void);
/* Graphs launched so far; -1 where nobody counts. */
long card_graphs(void);
