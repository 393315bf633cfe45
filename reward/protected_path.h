/*
 * Which paths of a repository a candidate patch may not decide in strict mode.
 */
#pragma once

#include <glib.h>

/* Numbers are stored and sent: never renumber. */
typedef enum PathClass {
    PATH_ORDINARY = 0,
    PATH_TEST = 1,          /* touched by the task's test patch: always restored */
    PATH_TEST_INFRA = 2,    /* decides how tests run: restored unless the gold patch touches it */
    PATH_CONFIG_SHARED = 3, /* decides tests and more; honest patches edit it: looked at, restored
                               only in the parts that matter to tests, or flagged */
} PathClass;

/* `test_paths` and `gold_paths`: sets of char * (keys), what the test patch and the gold patch
 * touch; either may be NULL. `path` is relative, with "/" between components. A path the gold
 * patch touches is ordinary, unless the test patch touches it too. */
PathClass path_class(const char *path, GHashTable *test_paths, GHashTable *gold_paths);

/*
 * The file or directory that would be imported in place of the test runner, or of a module that
 * runners import, if it is new: "unittest" for "unittest/case.py", "tests/pytest.py" for itself.
 * NULL for any other path. Looked for at the root and, runners only, in src, lib, t/lib, inc and
 * beside the files of `test_paths`. A repository that has this entry at its base is that runner, so
 * the caller asks git and leaves the path alone then. Free with g_free().
 */
char *path_shadowed_entry(const char *path, GHashTable *test_paths);

/* "ordinary", "test", "test_infra", "config_shared". */
const char *path_class_to_str(PathClass class);
