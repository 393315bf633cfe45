/*
 * SWE-bench v5 rows: they carry eval_script, log_parser, eval_type. This is the canonical form.
 */
#include "tasks/format.h"

static gboolean sniff(const json_t *row)
{
    return json_object_get(row, "eval_script") != NULL;
}

static json_t *convert(json_t *row, const json_t *specs, GError **error)
{
    (void)specs;
    (void)error;
    return json_incref(row);
}

const TaskFormat task_format_swe_bench_5 = {"swe_bench_5", sniff, convert};
