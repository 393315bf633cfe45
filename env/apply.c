/*
 * The patch chain of the two harness releases: git apply in several moods, then GNU patch.
 *
 * Invariants:
 *   1. The commands, their order and what happens between them are the harness's own; rewards in
 *      the compat modes depend on it.
 *   2. All of it runs inside the box: a hostile patch meets git and patch there.
 */
#include "env/apply.h"

#include "sandbox/box.h"

#include <string.h>

#define PATCH_PATH    "/tmp/patch.diff"
#define APPLY_WALL_MS 60000 /* each; at most nine commands */

typedef struct ApplyRules {
    const char *const *commands;   /* NULL-terminated; the patch's path is appended */
    gboolean clean_between;        /* attempts 2 and later start from a pristine tree */
    gboolean accept_if_reversible; /* "already applied" is success */
} ApplyRules;

static const char *const commands_4_1[] = {"git apply --verbose", "git apply --verbose --reject",
                                           "patch --batch --fuzz=5 -p1 -i", NULL};
static const char *const commands_5[] = {"git apply --verbose", "git apply --verbose --3way",
                                         "git apply --verbose --reject",
                                         "patch --batch --forward --fuzz=5 -p1 -i", NULL};

static const ApplyRules rules[] = {
    [APPLY_4_1] = {commands_4_1, FALSE, FALSE},
    [APPLY_5] = {commands_5, TRUE, TRUE},
};

void apply_result_clear(ApplyResult *result)
{
    if (result->log != NULL)
        g_string_free(result->log, TRUE);
    *result = (ApplyResult){0};
}

/* Runs LINE by bash; TRUE in *ret_ok when it exits with 0. Output goes to *ret_out if given. */
static gboolean line_run(Box *box, const char *const *envp, const char *line, const BoxFile *patch,
                         gboolean *ret_ok, char **ret_out, GError **error)
{
    g_autofree char *inside = box_text_inside(box, line);
    const char *argv[] = {"/bin/bash", "-c", inside, NULL};
    BoxCommand command = {.argv = argv,
                          .envp = envp,
                          .files = patch,
                          .n_files = 1,
                          .merge = TRUE,
                          .wall_ms = APPLY_WALL_MS};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, error))
        return FALSE;
    *ret_ok = result.outcome == BOX_EXITED && result.exit_code == 0;
    if (ret_out != NULL) {
        gsize len = 0;
        const char *out = result.out != NULL ? g_bytes_get_data(result.out, &len) : "";
        *ret_out = g_utf8_make_valid(out, (gssize)len);
    }
    return TRUE;
}

static gboolean chain_run(Box *box, const char *const *envp, const ApplyRules *chain,
                          const BoxFile *patch, ApplyResult *result, GError **error)
{
    g_autofree char *out = NULL;
    for (gsize i = 0; chain->commands[i] != NULL; i++) {
        gboolean ok = FALSE;
        if (i > 0 && chain->clean_between &&
            !line_run(box, envp, "git checkout -- . ; git clean -fd", patch, &ok, NULL, error))
            return FALSE;
        g_autofree char *line = g_strdup_printf("%s " PATCH_PATH, chain->commands[i]);
        g_clear_pointer(&out, g_free);
        if (!line_run(box, envp, line, patch, &ok, &out, error))
            return FALSE;
        if (ok) {
            result->applied = TRUE;
            result->how = chain->commands[i];
            g_string_append_printf(result->log, ">>>>> Applied Patch:\n%s\n", out);
            return TRUE;
        }
        g_string_append_printf(result->log, "Failed to apply patch to container: %s\n",
                               chain->commands[i]);
    }
    if (chain->accept_if_reversible &&
        !line_run(box, envp, "git apply --check --reverse " PATCH_PATH, patch, &result->applied,
                  NULL, error))
        return FALSE;
    result->how = result->applied ? "already applied" : NULL;
    if (result->applied)
        g_string_append(result->log, ">>>>> Applied Patch: verified already applied\n");
    else
        g_string_append_printf(result->log, ">>>>> Patch Apply Failed:\n%s\n", out);
    return TRUE;
}

gboolean patch_apply(Box *box, const char *const *envp, ApplyDialect dialect, const void *patch,
                     gsize patch_len, ApplyResult *ret_result, GError **error)
{
    const BoxFile file = {PATCH_PATH, patch, patch_len, 0644};
    *ret_result = (ApplyResult){.log = g_string_new(NULL)};
    return chain_run(box, envp, &rules[dialect], &file, ret_result, error);
}
