/*
 * Changes of a box (sandbox) written as a diff (tasks).
 *
 * Invariant: bounded in files and bytes, whatever was written in the box.
 */
#include "env/box_diff.h"

#include "base/error.h"
#include "tasks/repo_diff.h"

#include <string.h>

#define FILES_MAX 20000u
#define BYTES_MAX (256ull << 20) /* of both sides of all changed files */

static RepoDiffSide side_of(const BoxSide *side)
{
    RepoDiffSide out = {.mode = side->mode, .data = ""};
    if (side->data != NULL && g_bytes_get_size(side->data) > 0)
        out.data = g_bytes_get_data(side->data, &out.len);
    return out;
}

static gboolean add_change(const BoxChange *change, gpointer data, GError **error)
{
    const RepoDiffSide before = side_of(&change->before), after = side_of(&change->after);
    if (g_str_equal(change->path, ".git") || g_str_has_prefix(change->path, ".git/"))
        return TRUE;
    return repo_diff_add(data, change->path, &before, &after, error);
}

GString *box_diff(const Box *box, GError **error)
{
    g_autoptr(GString) patch = g_string_new(NULL);
    if (box_changes(box, FILES_MAX, BYTES_MAX, add_change, patch, error))
        return g_steal_pointer(&patch);
    g_prefix_error(error, "diff of the workspace: ");
    return NULL;
}
