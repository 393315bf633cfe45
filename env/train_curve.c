/*
 * Series and curves of metrics.
 *
 * 1. A series longer than its picture is shown by means of equal parts: no value is left out.
 *
 * Not here: where rows come from (train_log.c), what is shown where (cli_train_show.c,
 * cli_train_watch.c).
 */
#include "env/train_curve.h"

#include <math.h>

static const char *const heights[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

GArray *train_series(const GPtrArray *rows, const char *name)
{
    GArray *series = g_array_new(FALSE, FALSE, sizeof(double));

    for (guint i = 0; i < rows->len; i++) {
        const json_t *value = json_object_get(rows->pdata[i], name);

        if (json_is_number(value)) {
            double number = json_number_value(value);

            g_array_append_val(series, number);
        }
    }
    return series;
}

double train_series_last(const GPtrArray *rows, const char *name)
{
    for (guint i = rows->len; i > 0; i--) {
        const json_t *value = json_object_get(rows->pdata[i - 1], name);

        if (json_is_number(value))
            return json_number_value(value);
    }
    return (double)NAN;
}

GArray *train_series_means(const GArray *series, guint width)
{
    guint n = MIN(series->len, width);
    GArray *means = g_array_new(FALSE, FALSE, sizeof(double));

    for (guint w = 0; w < n; w++) {
        guint from = (guint)((guint64)series->len * w / n);
        guint to = (guint)((guint64)series->len * (w + 1) / n);
        double sum = 0;

        for (guint i = from; i < to; i++)
            sum += g_array_index(series, double, i);
        sum /= to - from;
        g_array_append_val(means, sum);
    }
    return means;
}

typedef struct {
    double least, most;
} Range;

static Range range_of(const GArray *series)
{
    Range range = {(double)INFINITY, (double)-INFINITY};

    for (guint i = 0; i < series->len; i++) {
        range.least = MIN(range.least, g_array_index(series, double, i));
        range.most = MAX(range.most, g_array_index(series, double, i));
    }
    return range;
}

/* Where the i-th value stands between the ends of the range, 0 to 1. */
static double share_at(const GArray *series, Range range, guint i)
{
    double value = g_array_index(series, double, i);

    return range.most > range.least ? (value - range.least) / (range.most - range.least) : 0.5;
}

char *train_curve(const GArray *series, guint width)
{
    g_autoptr(GArray) means = train_series_means(series, width);
    Range range = range_of(means);
    GString *curve = g_string_new(NULL);

    for (guint i = 0; i < means->len; i++)
        g_string_append(curve, heights[(guint)CLAMP(share_at(means, range, i) * 8, 0, 7)]);
    return g_string_free(curve, FALSE);
}

char *train_chart(const GArray *series, guint width, guint height)
{
    g_autoptr(GArray) means = train_series_means(series, width);
    Range range = range_of(means);
    GString *chart = g_string_new(NULL);

    for (guint line = 0; line < height && means->len > 0; line++) {
        int below = (int)(height - 1 - line) * 8; /* eighths of a line under this one */

        if (line == 0 || line + 1 == height)
            g_string_append_printf(chart, "%9.3g ", line == 0 ? range.most : range.least);
        else
            g_string_append_printf(chart, "%9s ", "");
        for (guint i = 0; i < means->len; i++) {
            int filled = 1 + (int)(share_at(means, range, i) * (8 * (int)height - 1)) - below;

            g_string_append(chart, filled <= 0 ? " " : heights[MIN(filled, 8) - 1]);
        }
        g_string_append_c(chart, '\n');
    }
    return g_string_free(chart, FALSE);
}
