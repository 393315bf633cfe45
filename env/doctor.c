/*
 * The doctor: the sandbox's own probe plus store, disk and tools.
 *
 * Not here: what a box needs (sandbox/, box_probe_json).
 */
#include "env/doctor.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "db/store.h"
#include "sandbox/box.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#define DISK_WARN_BYTES (2ULL << 30)
#define SYNC_PROBES     16

static void add(json_t *checks, const char *id, const char *group, const char *status,
                const char *fix, gint64 start_ns, const char *format, ...) G_GNUC_PRINTF(7, 8);

static void add(json_t *checks, const char *id, const char *group, const char *status,
                const char *fix, gint64 start_ns, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *detail = g_strdup_vprintf(format, args);
    va_end(args);
    json_t *fixes = json_array();
    if (fix != NULL)
        json_array_append_new(fixes, json_string(fix));
    json_array_append_new(checks, json_pack("{s:s,s:s,s:s,s:s,s:o,s:I}", "id", id, "group", group,
                                            "status", status, "detail", detail, "fix", fixes, "ms",
                                            (json_int_t)((clock_mono_ns() - start_ns) / 1000000)));
}

static void check_boxes(json_t *checks)
{
    g_autofree char *text = box_probe_json();
    g_autoptr(json_t) probe = text != NULL ? json_parse(text, strlen(text), NULL) : NULL;
    json_t *list = json_object_get(probe, "checks");
    for (gsize i = 0; i < json_array_size(list); i++) {
        json_t *check = json_array_get(list, i);
        json_object_set_new(check, "group", json_string("sandbox"));
        json_array_append(checks, check);
    }
}

static void check_disk(json_t *checks, const char *dir)
{
    gint64 start = clock_mono_ns();
    struct statvfs fs;
    if (statvfs(dir, &fs) < 0) {
        add(checks, "disk", "store", "warn", "assay up", start, "%s: %s", dir, g_strerror(errno));
        return;
    }
    guint64 free_bytes = (guint64)fs.f_bavail * fs.f_frsize;
    add(checks, "disk", "store", free_bytes < DISK_WARN_BYTES ? "warn" : "ok", NULL, start,
        "%" G_GUINT64_FORMAT " MiB free in %s", free_bytes >> 20, dir);
}

static void check_sync(json_t *checks, const char *dir)
{
    gint64 start = clock_mono_ns();
    AUTO_FD fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        add(checks, "fdatasync", "store", "skip", NULL, start, "no temporary file in %s: %s", dir,
            g_strerror(errno));
        return;
    }
    static const char block[4096];
    for (int i = 0; i < SYNC_PROBES; i++) {
        if (pwrite(fd, block, sizeof block, (off_t)i * (off_t)sizeof block) < 0 ||
            fdatasync(fd) < 0) {
            add(checks, "fdatasync", "store", "fail", NULL, start, "%s", g_strerror(errno));
            return;
        }
    }
    double mean_ms = (double)(clock_mono_ns() - start) / 1e6 / SYNC_PROBES;
    add(checks, "fdatasync", "store", mean_ms > 50 ? "warn" : "ok", NULL, start, "%.2f ms mean",
        mean_ms);
}

static void check_tools(json_t *checks)
{
    static const char *const tools[] = {"git", "patch", "bash"};
    for (guint i = 0; i < G_N_ELEMENTS(tools); i++) {
        gint64 start = clock_mono_ns();
        g_autofree char *path = g_find_program_in_path(tools[i]);
        g_autofree char *fix = g_strdup_printf("apt-get install %s", tools[i]);
        add(checks, tools[i], "tools", path != NULL ? "ok" : "fail", path != NULL ? NULL : fix,
            start, "%s", path != NULL ? path : "not found; patches are applied with it");
    }
}

static json_int_t count(const json_t *checks, const char *status)
{
    json_int_t n = 0;
    for (gsize i = 0; i < json_array_size(checks); i++)
        n += g_strcmp0(json_string_value(json_object_get(json_array_get(checks, i), "status")),
                       status) == 0;
    return n;
}

json_t *doctor_json(const char *state_dir)
{
    json_t *checks = json_array();
    check_boxes(checks);
    check_disk(checks, state_dir);
    check_sync(checks, state_dir);
    add(checks, "store", "store", "ok", NULL, clock_mono_ns(),
        "%s; one writer, so its WAL-reset "
        "bug cannot occur",
        store_engine_version());
    check_tools(checks);
    return json_pack("{s:o,s:I,s:I}", "checks", checks, "failures", count(checks, "fail"),
                     "warnings", count(checks, "warn"));
}
