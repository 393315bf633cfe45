/*
 * Endpoints about the daemon itself: health, version, info, doctor.
 */
#include "env/routes.h"

#include "base/error.h"
#include "base/id.h"
#include "env/doctor.h"
#include "env/grade_json.h"
#include "env/service.h"

#include <curl/curlver.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

void api_ping(Request *req)
{
    request_reply_alive(req, "OK\n");
}

void api_live(Request *req)
{
    request_reply_alive(req, "ok\n");
}

static json_t *check_json(const char *name, gboolean ok, const char *detail)
{
    return json_pack("{s:s,s:b,s:s,s:i}", "name", name, "ok", ok, "detail", detail, "ms", 0);
}

void api_ready(Request *req)
{
    Service *service = req->service;
    const char *why = service_not_ready(service);
    guint status = why == NULL ? 200 : 503;
    if (request_query(req, "verbose") == NULL) {
        g_autofree char *text = g_strdup_printf("%s\n", why != NULL ? why : "ok");
        request_reply_text(req, status, "text/plain", text);
        return;
    }
    const char *problem = worker_pool_problem(service->pool);
    g_autofree char *free_mib =
        g_strdup_printf("%" G_GUINT64_FORMAT " MiB free", service_disk_free(service) >> 20);
    request_reply_json(
        req, status,
        json_pack("{s:[o,o,o,o]}", "checks", check_json("store", TRUE, store_engine_version()),
                  check_json("draining", !service->draining, service->draining ? "yes" : "no"),
                  check_json("disk", g_strcmp0(why, "disk_low") != 0, free_mib),
                  check_json("workers", problem == NULL, problem != NULL ? problem : "ok")));
}

void api_version(Request *req)
{
    struct utsname host;
    if (uname(&host) < 0)
        memset(&host, 0, sizeof host);
    request_reply_json(req, 200,
                       json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:i}", "version", ASSAY_VERSION,
                                 "api", HTTP_API_VERSION, "api_min", HTTP_API_VERSION, "store",
                                 store_engine_version(), "libcurl", LIBCURL_VERSION, "jansson",
                                 JANSSON_VERSION, "kernel", host.release, "machine", host.machine,
                                 "pid", (int)getpid()));
}

void api_info(Request *req)
{
    Service *service = req->service;
    Config *config = service->config;
    json_t *values = json_object();
    for (int i = 0; i < CONFIG_KEY_COUNT; i++) {
        json_t *value = config_infos[i].type == CONFIG_TEXT
                            ? json_string(config_text(config, (ConfigKey)i))
                            : json_integer(config_int(config, (ConfigKey)i));
        json_object_set_new(
            values, config_infos[i].name,
            json_pack("{s:o,s:s}", "value", value, "origin", config_origin(config, (ConfigKey)i)));
    }
    GradeCounts counts = {0};
    grade_counts(service->store, &counts, NULL);
    json_t *info = json_pack(
        "{s:s,s:i,s:I,s:s,s:s,s:i,s:i,s:{s:i,s:i},s:{s:I,s:I},s:{s:I,s:I,s:I,s:I},s:I,s:o}", "host",
        g_get_host_name(), "cores", (int)g_get_num_processors(), "mem_bytes",
        (json_int_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), "state_dir",
        store_dir(service->store), "socket", config_text(config, CONFIG_SOCKET), "pid",
        (int)getpid(), "connections", (int)listener_n_connections(http_listener(service->http)),
        "slots", "total", (int)worker_pool_n_slots(service->pool), "used",
        (int)worker_pool_n_busy(service->pool), "disk", "free_bytes",
        (json_int_t)service_disk_free(service), "floor_bytes",
        (json_int_t)config_int(config, CONFIG_DISK_FLOOR_MIB) << 20, "grades", "queued",
        (json_int_t)counts.by_state[GRADE_QUEUED], "running",
        (json_int_t)counts.by_state[GRADE_RUNNING], "done", (json_int_t)counts.by_state[GRADE_DONE],
        "failed", (json_int_t)counts.by_state[GRADE_FAILED], "tasks_count",
        (json_int_t)task_count(service->store), "config", values);
    json_object_set_new(info, "started_at", time_json(service->started_ms));
    json_object_set_new(info, "draining", json_boolean(service->draining));
    request_reply_json(req, 200, info);
}

void api_doctor(Request *req)
{
    request_reply_json(req, 200, doctor_json(store_dir(req->service->store)));
}
