/*
 * A command as the bytes that its init gets.
 *
 * Invariants:
 *   1. Every count and path is checked here, so that init can refuse whatever is malformed.
 *   2. In the degraded mode paths are translated to the copy, here and nowhere else.
 *
 * Not here: sending them (box_run.c).
 */
#include "sandbox/box_request.h"

#include "base/error.h"
#include "sandbox/box_degraded.h"

/* A command's words as the box has them: translated in the degraded mode, else as they are. */
static char **words(const Box *box, const BoxCommand *command)
{
    char **list = g_strdupv((char **)(gsize)command->argv);
    for (char **word = list; *word != NULL; word++) {
        char *inside = box_path_inside(box, *word);
        for (gsize i = 0; box->copy_dir != NULL && i < command->n_files; i++)
            if (g_str_equal(command->files[i].path, *word)) {
                g_autofree char *file = box_degraded_file_path(box, *word);
                g_free(inside);
                inside = g_strconcat(box->copy_dir, file, NULL);
            }
        g_free(*word);
        *word = inside;
    }
    return list;
}

static gboolean put_files(const Box *box, const BoxCommand *command, GByteArray *bytes,
                          SpecWriter *writer, GError **error)
{
    for (gsize i = 0; i < command->n_files; i++) {
        const BoxFile *file = &command->files[i];
        if (!spec_path_ok(file->path) || file->path[1] == '\0')
            return error_set(error, ASSAY_ERROR_INPUT, "file %s is not an absolute, normal path",
                             file->path);
        if (file->len > SPEC_BYTES_MAX || bytes->len > SPEC_BYTES_MAX - file->len)
            return error_set(error, ASSAY_ERROR_LIMIT, "the files are larger than %u bytes",
                             SPEC_BYTES_MAX);
        g_autofree char *moved =
            box->copy_dir != NULL ? box_degraded_file_path(box, file->path) : NULL;
        SpecFile put = {moved != NULL ? moved : file->path, file->data, (guint32)file->len,
                        file->mode & 0777};
        spec_put_file(writer, &put);
    }
    return TRUE;
}

gboolean box_request_encode(const Box *box, const BoxCommand *command, GByteArray *bytes,
                            GError **error)
{
    if (command->n_files > SPEC_FILES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "more than %u files", SPEC_FILES_MAX);
    const char *const *given = command->envp != NULL ? command->envp : box_envp_default(box->uid);
    g_auto(GStrv) argv = words(box, command);
    g_auto(GStrv) envp = box->copy_dir != NULL ? box_degraded_envp(box, given)
                         : box->egress != NULL && command->envp == NULL
                             ? box_envp_proxied(given)
                             : g_strdupv((char **)(gsize)given);
    g_autofree char *cwd =
        box_path_inside(box, command->cwd != NULL ? command->cwd : box->work_path);
    SpecExec exec = {
        .flags = (command->terminal ? (guint)SPEC_EXEC_PTY : 0u) |
                 (command->keep_background ? (guint)SPEC_EXEC_KEEP : 0u),
        .rows = command->rows,
        .cols = command->cols,
        .n_argv = g_strv_length(argv),
        .n_envp = g_strv_length(envp),
        .n_files = (guint32)command->n_files,
        .cwd = cwd,
    };
    if (exec.n_argv == 0 || exec.n_argv > SPEC_ARGV_MAX || exec.n_envp > SPEC_ENVP_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "too many or no arguments");
    if (!spec_path_ok(exec.cwd))
        return error_set(error, ASSAY_ERROR_INPUT, "cwd %s is not an absolute, normal path",
                         exec.cwd);

    SpecWriter writer = launch_writer(bytes);
    spec_put_exec(&writer, &exec);
    for (guint i = 0; i < exec.n_argv; i++)
        spec_put_str(&writer, argv[i]);
    for (guint i = 0; i < exec.n_envp; i++)
        spec_put_str(&writer, envp[i]);
    return put_files(box, command, bytes, &writer, error);
}
