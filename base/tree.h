/*
 * Directory trees by descriptor: never by path, never through a symlink.
 */
#pragma once

#include <glib.h>

/* Removes NAME below `dir_fd` and all it holds, without following links or leaving the file
 * system. Absent is success. Directories the owner made unreadable are chmod-ed first. */
gboolean tree_remove(int dir_fd, const char *name, GError **error);

/* Opens NAME below `dir_fd` as a directory, making it (mode) when absent. -1 on error. */
int tree_open_dir(int dir_fd, const char *name, guint mode, GError **error);

/* Bytes allocated below `dir_fd` (st_blocks), each inode once. */
guint64 tree_bytes(int dir_fd);

/* Gives NAME below `dir_fd` and all it holds to uid:gid (links themselves, never their targets).
 * Nothing happens when they are ours already. */
gboolean tree_chown(int dir_fd, const char *name, guint uid, guint gid, GError **error);
