/*
 * What the live sandbox tests share: a box per kind of caller, running a line in it, and a picture
 * of the host before and after.
 */
#pragma once

#include "sandbox/box.h"

/* Starts a test program. Among the arguments "--as-user" drops to an ordinary uid first, "--shared"
 * gives boxes one id range, without idmapped directories, "--bare" no namespaces. Gives the boxes a
 * directory with the payload. Returns FALSE when the whole program must be skipped, with the
 * reason printed as TAP. */
gboolean lab_init(int *argc, char ***argv);

/* Takes "--long" out of the arguments: an opt-in suite of that name. FALSE, with the reason printed
 * as TAP, when it is not wanted (ASSAY_OPTIN is 1, or a list of names). */
gboolean lab_is_wanted(int *argc, char **argv, const char *suite, gboolean *ret_is_long);

/* Removes what lab_init made; every box must be closed. Returns `status`. */
int lab_end(int status);

gboolean lab_is_user(void);
gboolean lab_is_shared(void);
gboolean lab_is_bare(void);

/* Milliseconds stretched by ASSAY_TEST_SLOW, where a machine is emulated. */
guint64 lab_ms(guint64 ms);

/* A spec with small limits and the payload at /payload (bare: a file of each command, which lab_sh
 * and lab_try find). Borrowed parts live as long as the lab. */
BoxSpec lab_spec(guint inside_uid);

/* Opens it, or fails the test. */
Box *lab_open(const BoxSpec *spec);

/* Runs `sh -c LINE`; the standard output without its last newline. Fails the test when the box
 * itself fails. */
char *lab_sh(Box *box, const char *line, BoxResult *ret_result);

/* Runs /payload/payload WORD. */
char *lab_try(Box *box, const char *word, BoxResult *ret_result);

/* What must be the same after an attack: sysctls, host name, mounts, our program, processes. */
char *lab_host_picture(void);

/* Processes whose owner is in the range of `slot` (as root) or whose name is assay-box and whose
 * owner is ours. */
GArray *lab_box_pids(guint slot);

/* Is that process assay-box itself, a zombie, or gone: anything but a command? */
gboolean lab_is_ours(int pid);

/* Waits until each of those processes is gone; FALSE after `timeout_ms`. */
gboolean lab_wait_gone(GArray *pids, int timeout_ms);

/* Open descriptors of this process. */
guint lab_count_fds(void);

/* The cgroups of boxes that process OWNER has made, in any hierarchy. */
guint lab_count_groups(int owner);
