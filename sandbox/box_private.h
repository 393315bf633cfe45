/*
 * What an open box is; shared by box.c, box_exec.c and box_report.c only.
 */
#pragma once

#include "sandbox/box.h"
#include "sandbox/box_ids.h"
#include "sandbox/cgroup.h"
#include "sandbox/egress.h"
#include "sandbox/launch.h"

struct Box {
    int sock, pidfd; /* of the keeper */
    Starter *starter;
    Cgroup *cgroup;
    BoxIds ids;
    BoxLimits limits;
    char *work_path;
    char *copy_dir; /* degraded mode: where the workspace was copied; else NULL */
    guint uid, layers, landlock_abi;
    BoxNet net;
    Egress *egress;      /* the proxy of BOX_NET_PROXY */
    gboolean is_used_up; /* the keeper was killed for memory: every command is OUT_OF_MEMORY */
    gboolean is_sampled; /* init samples memory, since no cgroup counts it */
    BoxBy disk_by;
    char *degraded_why;
};
