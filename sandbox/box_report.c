/*
 * What a box enforces, in words for people and programs.
 *
 * Invariants:
 *   1. Nothing is listed as on that box_open did not see switched on.
 *   2. Every missing layer has a reason, and every limit names who enforces it.
 */
#include "sandbox/box_private.h"

#include "base/json.h"
#include "sandbox/probe.h"

static const char *why_missing(const Box *box, guint bit)
{
    if (box->degraded_why != NULL && bit < BOX_LAYER_CAPS)
        return box->degraded_why;
    switch (bit) {
    case BOX_LAYER_NET:
        return box->net == BOX_NET_HOST ? "the host's network was asked for"
                                        : "no network namespace";
    case BOX_LAYER_TIME:
        return "this kernel has no time namespaces";
    case BOX_LAYER_LANDLOCK:
        return "this kernel has no Landlock, or it is not enabled (lsm=landlock,...)";
    case BOX_LAYER_CAPS:
        return "nothing was gained, so nothing is dropped";
    default:
        return "not available on this host";
    }
}

static json_t *layers_json(const Box *box, gboolean missing)
{
    json_t *list = json_array();
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1) {
        const char *name = box_layer_str((BoxLayer)bit);
        if (!missing && (box->layers & bit))
            json_array_append_new(list, json_string(name));
        if (!missing || (box->layers & bit))
            continue;
        g_autofree char *groups = bit == BOX_LAYER_CGROUP ? cgroup_why(box->cgroup) : NULL;
        json_array_append_new(list, json_pack("{s:s, s:s}", "layer", name, "why",
                                              groups != NULL ? groups : why_missing(box, bit)));
    }
    return list;
}

static void add_limit(json_t *limits, const char *name, guint64 value, BoxBy by)
{
    json_object_set_new(limits, name, json_string(value == 0 ? "unlimited" : box_by_str(by)));
}

static json_t *limits_json(const Box *box)
{
    const BoxLimits *given = &box->limits;
    gboolean has_tree = box->layers & BOX_LAYER_OVERLAY;
    BoxBy memory = cgroup_mem_by(box->cgroup), pids = cgroup_pids_by(box->cgroup);
    BoxBy cpu = cgroup_cpu_by(box->cgroup), share = cgroup_share_by(box->cgroup);
    json_t *limits = json_object();
    add_limit(limits, "wall", given->wall_ms, BOX_BY_TIMER);
    add_limit(limits, "idle", given->idle_ms, BOX_BY_TIMER);
    add_limit(limits, "output", given->output_bytes_kill, BOX_BY_TIMER);
    add_limit(limits, "cpu", given->cpu_ms, cpu == BOX_BY_NOBODY ? BOX_BY_SAMPLER : cpu);
    add_limit(limits, "cpu_milli", given->cpu_milli,
              share == BOX_BY_NOBODY ? BOX_BY_AFFINITY : share);
    add_limit(limits, "cpu_weight", given->cpu_weight, share);
    add_limit(limits, "memory", given->mem_bytes,
              memory == BOX_BY_NOBODY && box->is_sampled ? BOX_BY_SAMPLER : memory);
    add_limit(limits, "swap", given->mem_bytes, cgroup_swap_by(box->cgroup));
    add_limit(limits, "pids", given->pids, pids == BOX_BY_NOBODY ? BOX_BY_RLIMIT : pids);
    add_limit(limits, "disk", given->disk_bytes, has_tree ? box->disk_by : BOX_BY_NOBODY);
    add_limit(limits, "inodes", given->inodes, has_tree ? box->disk_by : BOX_BY_NOBODY);
    add_limit(limits, "tmp", given->tmp_bytes, has_tree ? BOX_BY_TMPFS : BOX_BY_NOBODY);
    add_limit(limits, "file", given->file_bytes, BOX_BY_RLIMIT);
    add_limit(limits, "nofile", given->nofile, BOX_BY_RLIMIT);
    add_limit(limits, "stack", given->stack_bytes, BOX_BY_RLIMIT);
    return limits;
}

static json_t *notes_json(const Box *box)
{
    static const char *const id_words[] = {"single", "range", "shared"};
    static const char *const net_words[] = {"none", "host", "proxy"};
    gboolean has_tree = box->layers & BOX_LAYER_OVERLAY;
    json_t *notes = json_object();
    json_object_set_new(notes, "ids", json_string(id_words[box->ids.mode]));
    json_object_set_new(notes, "net", json_string(net_words[box->net]));
    json_object_set_new(notes, "rename_dir", json_string(has_tree ? "exdev" : "ok"));
    gboolean removes = box->disk_by != BOX_BY_TMPFS || probe_has_tmpfs_xattr();
    json_object_set_new(notes, "remove_dir", json_string(!has_tree || removes ? "ok" : "eio"));
    json_object_set_new(notes, "work", json_string(has_tree ? "overlay" : "copy"));
    if (box->landlock_abi > 0)
        json_object_set_new(notes, "landlock_abi", json_integer(box->landlock_abi));
    if (box->degraded_why != NULL)
        json_object_set_new(
            notes, "lost",
            json_string("process isolation, private /proc, loopback network, disk quotas, hiding "
                        "of the host's files from stat"));
    return notes;
}

char *box_report_json(const Box *box)
{
    g_autoptr(json_t) report = json_object();
    json_object_set_new(report, "mode",
                        json_string(box->layers & BOX_LAYER_MOUNT ? "namespaces" : "landlock"));
    json_object_set_new(report, "layers", layers_json(box, FALSE));
    json_object_set_new(report, "missing", layers_json(box, TRUE));
    json_object_set_new(report, "limits", limits_json(box));
    json_object_set_new(report, "notes", notes_json(box));
    return json_print(report);
}

guint box_sweep_stale(void)
{
    return cgroup_sweep();
}
