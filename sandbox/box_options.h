/*
 * The options of `assay box run` and `assay box shell`: one table makes parser, help and man page.
 */
#pragma once

#include "sandbox/box.h"

typedef struct BoxOptions {
    BoxLimits limits;
    char *root, *image, *images, *work, *work_path, *keep_upper, *keep_root_upper;
    char *cwd, *hostname, *require, *net;
    GPtrArray *layers, *mounts, *files, *envp, *allow;
    guint64 uid, gid, egress_bytes;
    gboolean has_uid, has_gid;
    gboolean root_read_only, allow_degraded, json, merge, pass_stdin, help;
    char **command; /* what follows the options; g_strfreev */
} BoxOptions;

void box_options_clear(BoxOptions *options);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(BoxOptions, box_options_clear)

/* argv[0] is the verb. Options end at "--" or at the first word that is none. An unknown one is an
 * error that names the nearest. */
gboolean box_options_parse(int argc, char **argv, BoxOptions *ret_options, GError **error);

void box_options_print_help(void);
/* The text of assay-box(1). */
void box_options_print_man(void);

/* Exit statuses that are not the command's own. */
enum {
    BOX_EXIT_LIMIT = 124,
    BOX_EXIT_NO_BOX = 125,
    BOX_EXIT_NOT_RUN = 126,
    BOX_EXIT_NOT_FOUND = 127,
    BOX_EXIT_SIGNALED = 128,
    BOX_EXIT_CANCELLED = 130,
    BOX_EXIT_MEMORY = 137,
};
