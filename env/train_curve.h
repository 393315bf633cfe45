/*
 * Series of a run's metrics, and their pictures in text.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

/* The values of a metric (double) in the order of rows; what is no number is left out. */
GArray *train_series(const GPtrArray *rows, const char *name);
/* The last value; NAN: there is none. */
double train_series_last(const GPtrArray *rows, const char *name);

/* Means of at most `width` equal parts of the series. */
GArray *train_series_means(const GArray *series, guint width);
/* One line of blocks of eight heights, between the least and the greatest mean. */
char *train_curve(const GArray *series, guint width);
/* `height` lines of blocks, each ended by a newline, with the scale on their left. */
char *train_chart(const GArray *series, guint width, guint height);
