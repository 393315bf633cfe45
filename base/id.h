/*
 * Identifiers: a type prefix and a ULID, so that sorting ids sorts by time.
 *
 *     g_autofree char *id = id_new("grd");    "grd_01KDQ8F3..."
 */
#pragma once

#include <glib.h>

/* A fresh id: PREFIX "_" and 26 Crockford base-32 digits (48-bit ms time, 80 random bits).
 * Later ids of one process sort after earlier ones. */
char *id_new(const char *prefix);

/* TRUE when `text` is PREFIX "_" and 26 such digits. */
gboolean id_is(const char *text, const char *prefix);

/* Milliseconds since the epoch, wall clock: what is stored. */
gint64 clock_wall_ms(void);

/* Nanoseconds, monotonic: what is measured. */
gint64 clock_mono_ns(void);
