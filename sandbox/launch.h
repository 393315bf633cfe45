/*
 * Starting assay-box and talking to it: one starter per slot, messages with descriptors.
 *
 *     Starter *starter = launch_starter(slot, error);
 *     int keeper_sock = launch_keeper(starter, open, fds, n_fds, &pidfd, error);
 */
#pragma once

#include "sandbox/spec.h"

#include <glib.h>
#include <sys/types.h>

#define LAUNCH_DYING_MAX 8 /* namespaces being torn down; more only delay each other */

typedef struct Starter {
    guint slot;
    int sock;
    pid_t pid;
    gboolean attached;           /* put into the slot's cgroups already */
    int dying[LAUNCH_DYING_MAX]; /* pidfds of keepers that were told to end */
    guint n_dying;
} Starter;

/* The running starter of `slot`, spawned when there is none (or it died). Borrowed: starters live
 * until launch_stop_all() or the end of this process. */
Starter *launch_starter(guint slot, GError **error);

/* Takes over the pidfd of a keeper that was told to end; at most LAUNCH_DYING_MAX are pending. */
void launch_leave_keeper(Starter *starter, int pidfd);
/* Waits until all of those are dead. */
void launch_wait_keepers(Starter *starter);

/* Opens one of our helper programs, wherever it is installed. -1 on error. */
int launch_open_program(const char *name, GError **error);

/* Ends every starter of this process and waits for them. */
void launch_stop_all(void);

/* Sends a request (in a sealed memfd when it is large) and the descriptors (borrowed). */
gboolean launch_send(int sock, GByteArray *bytes, const int *fds, guint n_fds, GError **error);

/* Receives one checked reply and up to `fds_max` descriptors (the rest are closed; absent ones are
 * -1). A FAILED reply becomes an error. */
gboolean launch_receive(int sock, SpecReply *ret_reply, int *ret_fds, guint fds_max,
                        GError **error);

/* Is the other end gone, with nothing left to read? */
gboolean launch_is_closed(int sock);

/* A writer that appends to a byte array. */
SpecWriter launch_writer(GByteArray *bytes);

/* A user namespace whose id maps are those given, for MOUNT_ATTR_IDMAP. The descriptor is cached
 * by its maps and borrowed. -1 on error. */
int launch_idmap(Starter *starter, const SpecMap *uids, const SpecMap *gids, GError **error);
