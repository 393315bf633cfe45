/*
 * A Python of the host for environments that ask for one ("python = 3.9").
 */
#pragma once

#include <glib.h>

typedef struct HostPython {
    char *executable; /* absolute */
    char *prefix;     /* sys.base_prefix: what a box must see */
    char *version;    /* "3.9.18" */
} HostPython;

void host_python_free(HostPython *python);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HostPython, host_python_free)

/* Looks for pythonX.Y in $ASSAY_PYTHONS (colon-separated bin directories), $PATH, and where pyenv,
 * uv and self-built ones live. ASSAY_ERROR_UNSUPPORTED names what to install. */
HostPython *host_python_find(const char *version, GError **error);
