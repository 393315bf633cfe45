/*
 * Applying a model's patch inside a box, in the dialect of a harness release.
 */
#pragma once

#include "sandbox/box.h"

#include <glib.h>

typedef enum ApplyDialect {
    APPLY_5 = 0,
    APPLY_4_1 = 1,
} ApplyDialect;

typedef struct ApplyResult {
    gboolean applied;
    const char *how; /* the command that did it, static; "already applied"; NULL */
    GString *log;    /* what SWE-bench writes to run_instance.log */
} ApplyResult;
void apply_result_clear(ApplyResult *result);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ApplyResult, apply_result_clear)

/*
 * Runs the dialect's commands one after another in `work_path` until one exits with 0. FALSE: the
 * box failed. A patch that does not apply is a value.
 *
 * Source: SWE-bench/SWE-bench swebench/harness/run_evaluation.py, v4.1.0 and 5.0.2.
 */
gboolean patch_apply(Box *box, const char *const *envp, ApplyDialect dialect, const void *patch,
                     gsize patch_len, ApplyResult *ret_result, GError **error);
