/*
 * Prompt lookup.
 *
 * Invariants
 *  1. Only the last WINDOW tokens are searched: the cost of a step does not grow with the text.
 *  2. The longest ending that occurs again wins, then the latest place.
 */
#include "policy/engine_draft.h"

#define ENDING_MAX 4
#define ENDING_MIN 2
#define WINDOW     8192

static gboolean ending_at(const int *ids, gint64 n, gint64 end, int length)
{
    for (int i = 1; i <= length; i++)
        if (ids[end - i] != ids[n - i])
            return FALSE;
    return TRUE;
}

guint draft_find(const int *ids, gint64 n, int drafts[ENGINE_DRAFT_MAX], guint max)
{
    gint64 from = MAX(0, n - WINDOW);

    max = MIN(max, ENGINE_DRAFT_MAX);
    for (int length = ENDING_MAX; max > 0 && length >= ENDING_MIN; length--)
        for (gint64 end = n - 1; end - length >= from; end--) {
            guint count = (guint)MIN((gint64)max, n - end);

            if (!ending_at(ids, n, end, length))
                continue;
            for (guint i = 0; i < count; i++)
                drafts[i] = ids[end + i];
            return count;
        }
    return 0;
}
