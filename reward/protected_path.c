/*
 * Test files, test infrastructure and shared configuration, by name.
 *
 * Invariants: names compare without case, because some checkouts fold it; patterns match the last
 * component unless they hold a "/", then they match the end of the path.
 */
#include "reward/protected_path.h"

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

const char *path_class_to_str(PathClass class)
{
    static const char *const words[] = {"ordinary", "test", "test_infra", "config_shared"};
    g_assert((gsize) class < G_N_ELEMENTS(words));
    return words[class];
}
