/*
 * Errors of the kind "our machine failed" and "the data is bad", carried by GError.
 *
 * Not here: outcomes and verdicts, which are values (sandbox/box.h, reward/grade.h).
 */
#include "base/error.h"

/* clang-format off */
G_DEFINE_QUARK(assay-error-quark, assay_error)
/* clang-format on */

gboolean error_set_errno(GError **error, int errno_value, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);

    g_set_error(error, ASSAY_ERROR, ASSAY_ERROR_SYSTEM, "%s: %s", what, g_strerror(errno_value));
    return FALSE;
}

gboolean error_set(GError **error, AssayErrorCode code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);

    g_set_error_literal(error, ASSAY_ERROR, (int)code, what);
    return FALSE;
}
