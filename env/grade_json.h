/*
 * The grade and sweep objects of the API.
 */
#pragma once

#include "env/service.h"

/* One grade; `cached` is about the request that shows it. Includes test counts, not statuses. */
json_t *grade_json(Service *service, const GradeRow *row, gboolean cached);
/* One line of sweep results: a grade with custom_id, model, sweep and cursor. */
json_t *grade_json_item(Service *service, const SweepItemRow *item, const char *sweep_id,
                        gboolean statuses);
json_t *task_json(const TaskRow *row);
/* NULL on a store error. */
json_t *sweep_json(Service *service, const SweepRow *row, GError **error);
/* {"object":"list", ...}; takes `data`. */
json_t *list_json(json_t *data, guint limit);
/* RFC 3339 UTC with milliseconds, or JSON null for 0. */
json_t *time_json(gint64 ms);
