/*
 * The probe behind `assay doctor`: what this host gives boxes, and what to do where it does not.
 *
 * Invariants:
 *   1. Nothing is inferred from a kernel version: a feature is tried, or asked of the kernel.
 *   2. Every check that is not ok carries at least one line that says how to mend it.
 *
 * Not here: the checks of one feature each (probe_host.c, probe_cgroup.c), printing (env's doctor).
 */
#include "sandbox/probe.h"

#include "base/error.h"
#include "base/json.h"

#include <stdarg.h>

void probe_say(Probe *probe, ProbeStatus status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    probe->status = status;
    g_free(probe->detail);
    probe->detail = g_strdup_vprintf(format, args);
    va_end(args);
}

void probe_fix(Probe *probe, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_ptr_array_add(probe->fixes, g_strdup_vprintf(format, args));
    va_end(args);
}

char *probe_line(const char *path)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return NULL;
    return g_strdup(g_strstrip(text));
}

/* A whole box with the default layers; the strongest evidence there is. */
static void check_box(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)arg;
    if (trial->ran) {
        probe_say(ret, PROBE_OK, "a box was opened, ran a command and was closed");
        return;
    }
    probe_say(ret, PROBE_FAIL, "%s",
              trial->error != NULL ? trial->error->message : "the command did not run");
    probe_fix(ret, "mend what fails below");
    probe_fix(ret, "or allow the degraded mode (--allow-degraded): Landlock, filter and limits "
                   "only");
}

static void check_layers(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)arg;
    g_autoptr(GString) missing = g_string_new(NULL);
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1)
        if (!(trial->layers & bit))
            g_string_append_printf(missing, "%s%s", missing->len > 0 ? ", " : "",
                                   box_layer_str((BoxLayer)bit));
    if (missing->len == 0) {
        probe_say(ret, PROBE_OK, "every layer is on");
        return;
    }
    probe_say(ret, trial->ran ? PROBE_WARN : PROBE_FAIL, "missing: %s", missing->str);
    probe_fix(ret, "assay box run --json true (says why for one box)");
}

static const ProbeCheck box_checks[] = {
    {"box", check_box, NULL}, {"layers", check_layers, NULL}, {NULL, NULL, NULL}};

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

static json_t *check_json(const ProbeCheck *check, const Trial *trial)
{
    static const char *const words[] = {"fail", "warn", "ok"};
    g_autoptr(GPtrArray) fixes = g_ptr_array_new_with_free_func(g_free);
    Probe probe = {.fixes = fixes};
    check->fn(trial, check->arg, &probe);
    json_t *fix = json_array();
    for (guint i = 0; i < fixes->len; i++)
        json_array_append_new(fix, json_string(fixes->pdata[i]));
    json_t *row = json_pack("{s:s, s:s, s:s, s:o}", "id", check->id, "status", words[probe.status],
                            "detail", probe.detail, "fix", fix);
    g_free(probe.detail);
    return row;
}

char *box_probe_json(void)
{
    const ProbeCheck *const lists[] = {box_checks, probe_host_checks, probe_cgroup_checks};
    Trial trial = {0};
    try_box(&trial);
    json_t *checks = json_array();
    for (gsize i = 0; i < G_N_ELEMENTS(lists); i++)
        for (const ProbeCheck *check = lists[i]; check->id != NULL; check++)
            json_array_append_new(checks, check_json(check, &trial));
    box_close(trial.box);
    g_clear_error(&trial.error);
    g_autoptr(json_t) report = json_pack("{s:o}", "checks", checks);
    return json_print(report);
}
