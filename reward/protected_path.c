/*
 * Test files, test infrastructure and shared configuration, and names that shadow the runner.
 *
 * Invariants: names compare without case, because some checkouts fold it; patterns match the last
 * component unless they hold a "/", then they match the end of the path.
 */
#include "reward/protected_path.h"

#include "reward/text.h"

#include <string.h>

static const struct {
    const char *pattern; /* `*` and `?` as in a shell */
    PathClass class;
} names[] = {
    /* Python */
    {"conftest.py", PATH_TEST_INFRA},
    {"pytest.ini", PATH_TEST_INFRA},
    {".pytest.ini", PATH_TEST_INFRA},
    {"pytest.toml", PATH_TEST_INFRA},
    {".pytest.toml", PATH_TEST_INFRA},
    {"tox.ini", PATH_TEST_INFRA},
    {"nose.cfg", PATH_TEST_INFRA},
    {".noserc", PATH_TEST_INFRA},
    {".coveragerc", PATH_TEST_INFRA},
    {"noxfile.py", PATH_TEST_INFRA},
    {"sitecustomize.py", PATH_TEST_INFRA},
    {"usercustomize.py", PATH_TEST_INFRA},
    {"sitecustomize", PATH_TEST_INFRA},
    {"usercustomize", PATH_TEST_INFRA},
    {"sitecustomize.pyc", PATH_TEST_INFRA},
    {"usercustomize.pyc", PATH_TEST_INFRA},
    {"*.pth", PATH_TEST_INFRA},
    {"pyvenv.cfg", PATH_TEST_INFRA},
    {"entry_points.txt", PATH_TEST_INFRA},
    {"setup.cfg", PATH_CONFIG_SHARED},
    {"pyproject.toml", PATH_CONFIG_SHARED},
    {"setup.py", PATH_CONFIG_SHARED},
    /* JavaScript */
    {"jest.config.*", PATH_TEST_INFRA},
    {"jest.setup.*", PATH_TEST_INFRA},
    {"jest-setup.*", PATH_TEST_INFRA},
    {"vitest.config.*", PATH_TEST_INFRA},
    {"vitest.setup.*", PATH_TEST_INFRA},
    {"vitest.workspace.*", PATH_TEST_INFRA},
    {"karma.conf*", PATH_TEST_INFRA},
    {".mocharc*", PATH_TEST_INFRA},
    {"mocha.opts", PATH_TEST_INFRA},
    {"jasmine.json", PATH_TEST_INFRA},
    {"jasmine.mjs", PATH_TEST_INFRA},
    {"ava.config.*", PATH_TEST_INFRA},
    {".taprc", PATH_TEST_INFRA},
    {"cypress.config.*", PATH_TEST_INFRA},
    {"playwright.config.*", PATH_TEST_INFRA},
    {".npmrc", PATH_TEST_INFRA},
    {".yarnrc*", PATH_TEST_INFRA},
    {"package.json", PATH_CONFIG_SHARED},
    {"babel.config.*", PATH_CONFIG_SHARED},
    {".babelrc*", PATH_CONFIG_SHARED},
    {"vite.config.*", PATH_CONFIG_SHARED},
    /* Go, Rust, C, C++ */
    {"go.work", PATH_TEST_INFRA},
    {"go.work.sum", PATH_TEST_INFRA},
    {".cargo/config", PATH_TEST_INFRA},
    {".cargo/config.toml", PATH_TEST_INFRA},
    {".config/nextest.toml", PATH_TEST_INFRA},
    {"rust-toolchain", PATH_TEST_INFRA},
    {"rust-toolchain.toml", PATH_TEST_INFRA},
    {"CTestTestfile.cmake", PATH_TEST_INFRA},
    {"CTestCustom.*", PATH_TEST_INFRA},
    {"CTestConfig.cmake", PATH_TEST_INFRA},
    {"go.mod", PATH_CONFIG_SHARED},
    {"Cargo.toml", PATH_CONFIG_SHARED},
    {"build.rs", PATH_CONFIG_SHARED},
    {"CMakeLists.txt", PATH_CONFIG_SHARED},
    {"Makefile", PATH_CONFIG_SHARED},
    {"GNUmakefile", PATH_CONFIG_SHARED},
    {"meson.build", PATH_CONFIG_SHARED},
    /* Java, PHP, Ruby, shells */
    {"junit-platform.properties", PATH_TEST_INFRA},
    {"phpunit.xml*", PATH_TEST_INFRA},
    {".rspec", PATH_TEST_INFRA},
    {"cucumber.yml", PATH_TEST_INFRA},
    {"pom.xml", PATH_CONFIG_SHARED},
    {"build.gradle*", PATH_CONFIG_SHARED},
    {"build.xml", PATH_CONFIG_SHARED},
    {"composer.json", PATH_CONFIG_SHARED},
    {"Rakefile", PATH_CONFIG_SHARED},
    {"Gemfile", PATH_CONFIG_SHARED},
    /* git reads these while the grader applies patches */
    {".gitattributes", PATH_TEST_INFRA},
    {".gitmodules", PATH_TEST_INFRA},
};

static gboolean name_matches(const char *pattern, const char *path)
{
    const char *tail = path + strlen(path);
    guint slashes = 0;
    for (const char *p = pattern; *p != '\0'; p++)
        slashes += *p == '/';
    for (; tail > path; tail--)
        if (tail[-1] == '/' && slashes-- == 0)
            break;
    return g_pattern_match_simple(pattern, tail);
}

PathClass path_class(const char *path, GHashTable *test_paths, GHashTable *gold_paths)
{
    if (test_paths != NULL && g_hash_table_contains(test_paths, path))
        return PATH_TEST;
    if (gold_paths != NULL && g_hash_table_contains(gold_paths, path))
        return PATH_ORDINARY;
    g_autofree char *lower = g_ascii_strdown(path, -1);
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *pattern = g_ascii_strdown(names[i].pattern, -1);
        if (name_matches(pattern, lower))
            return names[i].class;
    }
    return PATH_ORDINARY;
}

/* ---- names that come before the real ones ---- */

static const char *const python_runners[] = {
    "unittest", "pytest",  "_pytest",    "py",  "pluggy", "iniconfig", "nose",  "nose2",
    "xdist",    "doctest", "hypothesis", "tox", "mock",   "packaging", "tomli", "exceptiongroup",
};

/* What the runners import. A file of such a name at the root breaks any Python project. */
static const char *const python_stdlib[] = {
    "abc",       "argparse",    "ast",        "atexit",    "bdb",         "builtins",  "cmd",
    "codecs",    "collections", "contextlib", "copy",      "dataclasses", "difflib",   "dis",
    "enum",      "fnmatch",     "functools",  "gc",        "gettext",     "heapq",     "importlib",
    "inspect",   "io",          "ipaddress",  "itertools", "json",        "keyword",   "linecache",
    "locale",    "logging",     "operator",   "os",        "pathlib",     "pdb",       "pkgutil",
    "platform",  "posixpath",   "pprint",     "random",    "re",          "reprlib",   "runpy",
    "selectors", "shlex",       "shutil",     "signal",    "site",        "stat",      "string",
    "struct",    "subprocess",  "sysconfig",  "tempfile",  "textwrap",    "threading", "time",
    "timeit",    "token",       "tokenize",   "traceback", "types",       "typing",    "urllib",
    "uuid",      "warnings",    "weakref",    "xml",       "zipfile",     "zipimport",
};

static const char *const perl_modules[] = {
    "Test/More.pm", "Test/Simple.pm",  "Test/Builder.pm",
    "Test/Builder", "Test/Harness.pm", "Test2",
    "TAP",          "Test.pm",         "strict.pm",
    "warnings.pm",  "Exporter.pm",     "Carp.pm",
    "POSIX.pm",     "lib.pm",          "vars.pm",
};

static const char *const import_dirs[] = {"", "src/", "lib/", "t/lib/", "inc/"};

static gboolean word_is_in(Span word, const char *const *list, gsize n)
{
    for (gsize i = 0; i < n; i++)
        if (span_eq(word, span_of(list[i])))
            return TRUE;
    return FALSE;
}

/* Bytes of `rest` that name the Perl module or directory of modules; 0: none of ours. */
static gsize perl_entry(const char *rest)
{
    for (gsize i = 0; i < G_N_ELEMENTS(perl_modules); i++) {
        gsize len = strlen(perl_modules[i]);
        if (strncmp(rest, perl_modules[i], len) == 0 && (rest[len] == '\0' || rest[len] == '/'))
            return len;
    }
    return 0;
}

/* Bytes of `rest` that Python would import as one of our names; 0: none of them. Of a directory
 * named like a library module only __init__ counts: without it the real module wins. */
static gsize python_entry(const char *rest, gboolean stdlib)
{
    if (!g_str_has_suffix(rest, ".py") && !g_str_has_suffix(rest, ".pyc") &&
        !g_str_has_suffix(rest, ".so"))
        return 0;
    const Span name = {rest, strcspn(rest, "./")};
    const char *tail = rest + name.len;
    if (word_is_in(name, python_runners, G_N_ELEMENTS(python_runners)))
        return *tail == '/' ? name.len : strchr(tail, '/') == NULL ? strlen(rest) : 0;
    if (!stdlib || !word_is_in(name, python_stdlib, G_N_ELEMENTS(python_stdlib)))
        return 0;
    return g_str_has_prefix(tail, "/__init__.") || strchr(tail, '/') == NULL ? strlen(rest) : 0;
}

static gboolean dir_holds_test(const char *dir, gsize len, GHashTable *test_paths)
{
    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, test_paths);
    while (g_hash_table_iter_next(&iter, &key, NULL))
        if (strncmp(key, dir, len) == 0 && strchr((const char *)key + len, '/') == NULL)
            return TRUE;
    return FALSE;
}

char *path_shadowed_entry(const char *path, GHashTable *test_paths)
{
    for (gsize i = 0; i < G_N_ELEMENTS(import_dirs); i++) {
        gsize dir = strlen(import_dirs[i]);
        if (strncmp(path, import_dirs[i], dir) != 0)
            continue;
        gsize len = MAX(python_entry(path + dir, dir == 0), perl_entry(path + dir));
        if (len > 0)
            return g_strndup(path, dir + len);
    }
    for (const char *at = strchr(path, '/'); at != NULL; at = strchr(at + 1, '/')) {
        gsize dir = (gsize)(at - path) + 1;
        gsize len = python_entry(path + dir, FALSE);
        if (len > 0 && test_paths != NULL && dir_holds_test(path, dir, test_paths))
            return g_strndup(path, dir + len);
    }
    return NULL;
}

const char *path_class_to_str(PathClass class)
{
    static const char *const words[] = {"ordinary", "test", "test_infra", "config_shared"};
    g_assert((gsize) class < G_N_ELEMENTS(words));
    return words[class];
}
