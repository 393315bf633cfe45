/*
 * What a box enforces, in words for people and programs.
 *
 * Invariant: nothing is listed as on that box_open did not see switched on.
 */
#include "sandbox/box_private.h"

#include "base/json.h"

char *box_report_json(const Box *box)
{
    static const char *const id_words[] = {"single", "range", "shared"};
    g_autoptr(json_t) layers = json_array();
    g_autoptr(json_t) missing = json_array();
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1) {
        const char *name = box_layer_str((BoxLayer)bit);
        if (box->layers & bit)
            json_array_append_new(layers, json_string(name));
        else
            json_array_append_new(missing, json_pack("{s:s, s:s}", "layer", name, "why",
                                                     "not available on this host"));
    }
    g_autoptr(json_t) report =
        json_pack("{s:s, s:O, s:O, s:{s:s}, s:{s:s, s:s}}", "mode",
                  box->layers & BOX_LAYER_MOUNT ? "namespaces" : "landlock", "layers", layers,
                  "missing", missing, "limits", "memory",
                  box_by_str(cgroup_mem_by(box->cgroup)), "notes", "ids", id_words[box->ids.mode],
                  "rename_dir", "exdev");
    return json_print(report);
}

guint box_sweep_stale(void)
{
    return cgroup_sweep();
}
