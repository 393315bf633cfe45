/*
 * Test name -> status, in the order of a Python dict: the first appearance fixes the place, the
 * last one the status.
 */
#pragma once

#include "reward/text.h"

typedef struct StatusMap StatusMap;

typedef struct StatusEntry {
    Span name;
    Span status;   /* usually one of the STATUS_* words; some parsers copy any word of a line */
    gboolean torn; /* a later line gave this name a status that disagrees on passing */
} StatusEntry;

#define STATUS_FAILED  SPAN("FAILED")
#define STATUS_PASSED  SPAN("PASSED")
#define STATUS_SKIPPED SPAN("SKIPPED")
#define STATUS_ERROR   SPAN("ERROR")
#define STATUS_XFAIL   SPAN("XFAIL")

StatusMap *status_map_new(void);
void status_map_free(StatusMap *map);
/* Copies both. */
void status_map_set(StatusMap *map, Span name, Span status);
guint status_map_len(const StatusMap *map);
/* The i-th entry in order; borrowed. */
const StatusEntry *status_map_at(const StatusMap *map, guint i);
/* NULL when absent; borrowed. */
const StatusEntry *status_map_find(const StatusMap *map, Span name);

/* PASSED or XFAIL. */
gboolean status_is_pass(Span status);
/* FAILED or ERROR. */
gboolean status_is_fail(Span status);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(StatusMap, status_map_free)
