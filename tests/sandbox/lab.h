/*
 * What the live sandbox tests share: a box per kind of caller, running a line in it, and a picture
 * of the host before and after.
 */
#pragma once

#include "sandbox/box.h"

/* Starts a test program: "--as-user" among the arguments drops to an ordinary uid first. Gives the
 * boxes a directory with the payload. Returns FALSE when the whole program must be skipped, with
 * the reason printed as TAP. */
gboolean lab_init(int *argc, char ***argv);

/* Removes what lab_init made; every box must be closed. Returns `status`. */
int lab_end(int status);

gboolean lab_is_user(void);

/* Milliseconds stretched by ASSAY_TEST_SLOW, where a machine is emulated. */
guint64 lab_ms(guint64 ms);

/* A spec with small limits and the payload at /payload. Borrowed parts live as long as the lab. */
BoxSpec lab_spec(guint inside_uid);

/* Opens it, or fails the test. */
Box *lab_open(const BoxSpec *spec);

/* Runs `sh -c LINE`; the standard output without its last newline. Fails the test when the box
 * itself fails. */
char *lab_sh(Box *box, const char *line, BoxResult *ret_result);

/* Runs /payload/payload WORD. */
char *lab_try(Box *box, const char *word, BoxResult *ret_result);

/* What must be the same after an attack: sysctls, host name, mounts, processes of boxes. */
char *lab_host_picture(void);

/* Processes whose owner is in the range of `slot` (as root) or whose name is assay-box and whose
 * owner is ours. */
GArray *lab_box_pids(guint slot);

/* Is that process assay-box itself, a zombie, or gone: anything but a command? */
gboolean lab_is_ours(int pid);

/* Waits until each of those processes is gone; FALSE after `timeout_ms`. */
gboolean lab_wait_gone(GArray *pids, int timeout_ms);
