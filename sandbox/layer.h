/*
 * The layers of a box, as bits: shared by the library and by assay-box, which knows no GLib.
 */
#pragma once

/* Layers that a box may enforce; a bit set of what really is on. */
typedef enum BoxLayer {
    BOX_LAYER_USER = 1 << 0,
    BOX_LAYER_MOUNT = 1 << 1,
    BOX_LAYER_PID = 1 << 2,
    BOX_LAYER_NET = 1 << 3,
    BOX_LAYER_IPC = 1 << 4,
    BOX_LAYER_UTS = 1 << 5,
    BOX_LAYER_CGROUP_NS = 1 << 6,
    BOX_LAYER_TIME = 1 << 7,
    BOX_LAYER_PIVOT_ROOT = 1 << 8,
    BOX_LAYER_OVERLAY = 1 << 9,
    BOX_LAYER_CAPS = 1 << 10,
    BOX_LAYER_NO_NEW_PRIVS = 1 << 11,
    BOX_LAYER_LANDLOCK = 1 << 12,
    BOX_LAYER_SECCOMP = 1 << 13,
    BOX_LAYER_RLIMITS = 1 << 14,
    BOX_LAYER_CGROUP = 1 << 15, /* memory and pids held by a cgroup */
} BoxLayer;
