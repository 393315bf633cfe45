/*
 * The cache key of a grade.
 *
 * Invariant: everything that may change an outcome is a field; who asked and when is not.
 */
#include "env/env_key.h"

#include "base/digest.h"
#include "env/env_image.h"
#include "tasks/environment.h"
#include "tasks/task.h"

#include <string.h>

char *env_key_for(const TaskRow *row, const char *patch_sha, const char *mode,
                  const char *environments, const char *state_dir, const json_t *limits,
                  GError **error)
{
    g_autoptr(json_t) spec = json_parse(row->spec, strlen(row->spec), error);
    if (spec == NULL)
        return NULL;
    g_autoptr(Task) task = task_from_json(spec, error);
    if (task == NULL)
        return NULL;
    g_autoptr(Environment) env = environment_for(task, environments, error);
    if (env == NULL)
        return NULL;
    g_autofree char *image = env->image != NULL ? env_image_id(state_dir, env->image) : NULL;
    g_autofree char *environment = env_image_key(env->digest, image);
    g_autofree char *limits_text = json_dumps(limits, JSON_COMPACT | JSON_SORT_KEYS);
    /* The name too: two tasks of equal content are still two instances of a report. */
    const char *fields[] = {row->instance_id, row->content_sha256, patch_sha,
                            environment,      QUEUE_GRADER,        mode,
                            QUEUE_BOX,        limits_text};
    g_autoptr(Digest) digest = digest_new("assay.grade.v1");
    for (guint i = 0; i < G_N_ELEMENTS(fields); i++)
        digest_add_str(digest, fields[i]);
    return digest_finish(digest);
}
