/*
 * What a test may ask of the shim: the order of warps, the barriers met, and one barrier left out;
 * what became of graphs and memory.
 *
 * A barrier's site is a line of a kernel. Leaving a site out, then comparing bits between the two
 * orders, shows whether a test would see that barrier missing.
 */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CuemuSite {
    const char *file;
    int line, met; /* met: known to the list of sites */
    int skipped;   /* threads pass without waiting */
    long hits;     /* arrivals of threads; a test may set it */
    struct CuemuSite *next;
} CuemuSite;

/* Blocks, warps and lanes run last to first. */
void cuemu_reverse(int on);

/* The card is of this compute capability, major.0; 8 at first. */
void cuemu_capability(int major);

/* Graphs made and launched so far, nodes changed, and graphs that are there. */
typedef struct {
    long made, launched, changed, held;
} CuemuGraphs;

CuemuGraphs cuemu_graphs(void);

/* Pieces of memory that are there. */
long cuemu_memory(void);

/* Every barrier that a kernel has reached so far. */
CuemuSite *cuemu_sites(void);

#ifdef __cplusplus
}
#endif
