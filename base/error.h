/*
 * The one GError domain of Assay, and how errors read: outermost noun first.
 *
 *     if (!repo_open(url, &repo, error)) {
 *         g_prefix_error(error, "task %s: ", id);
 *         return FALSE;
 *     }
 */
#pragma once

#include <glib.h>

/* What a caller may want to tell apart. The numbers are stored and sent: never renumber. */
typedef enum AssayErrorCode {
    ASSAY_ERROR_SYSTEM = 0, /* our machine failed: errno, store, clone ... */
    ASSAY_ERROR_INPUT = 1,  /* the data is malformed; the message names where */
    ASSAY_ERROR_NOT_FOUND = 2,
    ASSAY_ERROR_NOT_ALLOWED = 3,
    ASSAY_ERROR_UNSUPPORTED = 4, /* this host or build lacks something; the message names it */
    ASSAY_ERROR_CONFLICT = 5,
    ASSAY_ERROR_LIMIT = 6, /* a named limit was exceeded */
    ASSAY_ERROR_BUSY = 7,  /* all of a kind are in use: to be tried again */
} AssayErrorCode;

#define ASSAY_ERROR assay_error_quark()
GQuark assay_error_quark(void);

/* Sets `error` to "FORMAT: strerror(errno_value)" with code ASSAY_ERROR_SYSTEM. Returns FALSE. */
gboolean error_set_errno(GError **error, int errno_value, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* Sets `error` with the given code. Returns FALSE, so that it can end a function. */
gboolean error_set(GError **error, AssayErrorCode code, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
