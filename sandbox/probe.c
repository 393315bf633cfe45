/*
 * The probe behind `assay doctor`: what this host gives boxes, and what to do where it does not.
 *
 * Invariants:
 *   1. Nothing is inferred from a kernel version: a feature is tried, or asked of the kernel.
 *   2. Every check that is not ok carries at least one line that says how to mend it.
 *
 * Not here: printing (env's doctor, box_tool.c).
 */
#include "sandbox/box.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "sandbox/cgroup.h"
#include "sandbox/filter.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>

#define PROBE_SLOT 2045 /* the last slot: no worker uses it */

typedef enum ProbeStatus { PROBE_FAIL = 0, PROBE_WARN = 1, PROBE_OK = 2 } ProbeStatus;

typedef struct Probe {
    ProbeStatus status;
    char *detail;
    const char *fix[4]; /* NULL-terminated, static */
} Probe;

/* What a real box, opened and used once, says. */
typedef struct Trial {
    Box *box;
    GError *error;
    guint layers;
    gboolean ran;
} Trial;

static char *read_line(const char *path)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return NULL;
    return g_strdup(g_strstrip(text));
}

static gboolean is_zero(const char *path)
{
    g_autofree char *text = read_line(path);
    return text != NULL && g_str_equal(text, "0");
}

/* A whole box with the default layers; the strongest evidence there is. */
static void probe_box(const Trial *trial, Probe *ret)
{
    if (trial->ran) {
        ret->status = PROBE_OK;
        ret->detail = g_strdup("a box was opened, ran a command and was closed");
        return;
    }
    g_autofree char *apparmor = read_line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    ret->detail =
        g_strdup(trial->error != NULL ? trial->error->message : "the command did not run");
    if (is_zero("/proc/sys/user/max_user_namespaces"))
        ret->fix[0] = "sysctl user.max_user_namespaces=15000";
    else if (is_zero("/proc/sys/kernel/unprivileged_userns_clone"))
        ret->fix[0] = "sysctl kernel.unprivileged_userns_clone=1";
    else if (apparmor != NULL && g_str_equal(apparmor, "1"))
        ret->fix[0] = "allow user namespaces for assay-box in AppArmor, or sysctl "
                      "kernel.apparmor_restrict_unprivileged_userns=0";
    else
        ret->fix[0] = "in a container: run it with --privileged, or with --security-opt "
                      "seccomp=unconfined --security-opt systempaths=unconfined";
    ret->fix[1] = "or allow the degraded mode (--allow-degraded): Landlock, filter and limits only";
}

static void probe_landlock(const Trial *trial, Probe *ret)
{
    (void)trial;
    int abi = kernel_landlock_abi();
    if (abi >= 6) {
        ret->status = PROBE_OK;
        ret->detail = g_strdup_printf("ABI %d, errata aside", abi);
        return;
    }
    ret->status = PROBE_WARN;
    ret->detail = abi > 0 ? g_strdup_printf("ABI %d: no signal and socket scopes", abi)
                          : g_strdup("absent or not enabled");
    ret->fix[0] = abi > 0 ? "Linux 6.12 or newer adds the scopes"
                          : "boot with lsm=landlock added, on Linux 5.13 or newer";
}

static void probe_seccomp(const Trial *trial, Probe *ret)
{
    (void)trial;
    g_autoptr(GError) error = NULL;
    guint32 action = SECCOMP_RET_ERRNO;
    GBytes *filter = filter_build(FILTER_BOX, &error);
    if (filter == NULL) {
        ret->detail = g_strdup(error->message);
        ret->fix[0] = "install libseccomp 2.5 or newer";
    } else if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0) {
        ret->detail = g_strdup_printf("the kernel refuses filters: %s", g_strerror(errno));
        ret->fix[0] = "a kernel with CONFIG_SECCOMP_FILTER is needed";
    } else {
        ret->status = PROBE_OK;
        ret->detail =
            g_strdup_printf("%" G_GSIZE_FORMAT " instructions", g_bytes_get_size(filter) / 8);
    }
}

static void probe_cgroup(const Trial *trial, Probe *ret)
{
    Cgroup *cgroup = cgroup_slot(PROBE_SLOT);
    ret->detail = g_strdup_printf(
        "memory by %s, pids by %s, cpu time by %s", box_by_str(cgroup_mem_by(cgroup)),
        box_by_str(cgroup_pids_by(cgroup)), box_by_str(cgroup_cpu_by(cgroup)));
    ret->status = trial->layers & BOX_LAYER_CGROUP ? PROBE_OK : PROBE_WARN;
    if (ret->status == PROBE_OK)
        return;
    ret->fix[0] = "run the daemon as root, or as a systemd service with Delegate=memory pids";
    ret->fix[1] = "without it memory is sampled every 50 ms and pids are held by RLIMIT_NPROC";
}

static void probe_ids(const Trial *trial, Probe *ret)
{
    (void)trial;
    if (geteuid() != 0 || box_store_uid() == 0) {
        ret->status = PROBE_WARN;
        ret->detail = g_strdup_printf("single id: boxes share uid %u", geteuid());
        ret->fix[0] = "run the daemon as root: boxes then get unprivileged id ranges of their own";
        return;
    }
    ret->status = PROBE_OK;
    ret->detail = g_strdup_printf("a range of 65536 ids per slot from %u", box_store_uid());
}

static void probe_layers(const Trial *trial, Probe *ret)
{
    g_autoptr(GString) missing = g_string_new(NULL);
    for (guint bit = 1; bit < BOX_LAYER_CGROUP; bit <<= 1)
        if (!(trial->layers & bit))
            g_string_append_printf(missing, "%s%s", missing->len > 0 ? ", " : "",
                                   box_layer_str((BoxLayer)bit));
    if (missing->len == 0) {
        ret->status = PROBE_OK;
        ret->detail = g_strdup("every layer is on");
        return;
    }
    ret->status = trial->ran ? PROBE_WARN : PROBE_FAIL;
    ret->detail = g_strdup_printf("missing: %s", missing->str);
    ret->fix[0] = "see the other checks; `assay box run --json` shows the reasons for one box";
}

static void probe_openat2(const Trial *trial, Probe *ret)
{
    (void)trial;
    AUTO_FD fd = kernel_openat2(AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0, KERNEL_RESOLVE_NO_SYMLINKS);
    if (fd >= 0) {
        ret->status = PROBE_OK;
        ret->detail = g_strdup("paths can be resolved without following links");
        return;
    }
    ret->detail = g_strdup_printf("openat2: %s", g_strerror(errno));
    ret->fix[0] = "Linux 5.6 or newer is needed, and a container filter that allows openat2";
}

static void probe_core_pattern(const Trial *trial, Probe *ret)
{
    (void)trial;
    g_autofree char *pattern = read_line("/proc/sys/kernel/core_pattern");
    gboolean piped = pattern != NULL && pattern[0] == '|';
    ret->status = piped ? PROBE_WARN : PROBE_OK;
    ret->detail = piped ? g_strdup("core dumps are piped to a program of the host")
                        : g_strdup("core dumps are files: the limit of 0 holds");
    if (piped)
        ret->fix[0] = "sysctl kernel.core_pattern=core, or accept that crashes in boxes are seen "
                      "by the host's crash handler";
}

static const struct {
    const char *id;
    void (*fn)(const Trial *trial, Probe *ret);
} probes[] = {
    {"box", probe_box},         {"layers", probe_layers},
    {"ids", probe_ids},         {"cgroup", probe_cgroup},
    {"seccomp", probe_seccomp}, {"landlock", probe_landlock},
    {"openat2", probe_openat2}, {"core_pattern", probe_core_pattern},
};

static void try_box(Trial *trial)
{
    BoxSpec spec = {.slot = PROBE_SLOT, .limits = box_limits_default()};
    trial->box = box_open(&spec, &trial->error);
    if (trial->box == NULL)
        return;
    trial->layers = box_enforced(trial->box);
    BoxCommand command = {.argv = (const char *const[]){"/bin/true", NULL}, .wall_ms = 10000};
    g_auto(BoxResult) result = {0};
    trial->ran = box_exec(trial->box, &command, &result, &trial->error) &&
                 result.outcome == BOX_EXITED && result.exit_code == 0;
}

char *box_probe_json(void)
{
    static const char *const words[] = {"fail", "warn", "ok"};
    Trial trial = {0};
    try_box(&trial);

    json_t *checks = json_array();
    for (gsize i = 0; i < G_N_ELEMENTS(probes); i++) {
        Probe probe = {0};
        probes[i].fn(&trial, &probe);
        json_t *fix = json_array();
        for (int k = 0; probe.fix[k] != NULL; k++)
            json_array_append_new(fix, json_string(probe.fix[k]));
        json_array_append_new(checks,
                              json_pack("{s:s, s:s, s:s, s:o}", "id", probes[i].id, "status",
                                        words[probe.status], "detail", probe.detail, "fix", fix));
        g_free(probe.detail);
    }
    box_close(trial.box);
    g_clear_error(&trial.error);
    g_autoptr(json_t) report = json_pack("{s:o}", "checks", checks);
    return json_print(report);
}
