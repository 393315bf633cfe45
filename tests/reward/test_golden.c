/*
 * golden/PARSER/CASE/{log,expect}: one test per case and release. Adding a folder adds a test.
 *
 * `expect` is JSON: {"4.1": {"map": {...}} or {"raises": true}, "5": ..., "instance_id",
 * "version"}; a release that is left out is not checked (4.1 lacks some parsers).
 */
#include "base/fd.h"
#include "base/json.h"
#include "reward/log_parser.h"
#include "reward/pyjson.h"

#include <string.h>

#define FILE_BYTES_MAX (4u * 1024 * 1024)

typedef struct Case {
    char *dir, *parser;
    GraderVersion version;
} Case;

static GBytes *read_file(const char *dir, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(dir, name, NULL);
    GBytes *bytes = file_read(path, FILE_BYTES_MAX, &error);
    g_assert_no_error(error);
    return bytes;
}

static const char *release_of(GraderVersion version)
{
    return version == GRADER_5 ? "5" : "4.1";
}

static json_t *read_expect(const char *dir)
{
    g_autoptr(GBytes) text = read_file(dir, "expect");
    gsize len;
    const char *bytes = g_bytes_get_data(text, &len);
    json_t *expect = json_loadb(bytes, len, JSON_ALLOW_NUL, NULL);
    g_assert_nonnull(expect);
    return expect;
}

static json_t *map_json(const StatusMap *map)
{
    json_t *object = json_object();
    for (guint i = 0; i < status_map_len(map); i++) {
        const StatusEntry *entry = status_map_at(map, i);
        json_object_setn_new_nocheck(object, entry->name.ptr, entry->name.len,
                                     json_stringn_nocheck(entry->status.ptr, entry->status.len));
    }
    return object;
}

static void run_case(gconstpointer data)
{
    const Case *c = data;
    g_autoptr(GBytes) log = read_file(c->dir, "log");
    g_autoptr(json_t) expect = read_expect(c->dir);
    const json_t *want = json_object_get(expect, release_of(c->version));
    LogContext ctx = {
        .version = c->version,
        .instance_id = json_string_value(json_object_get(expect, "instance_id")),
        .repo_version = json_string_value(json_object_get(expect, "version")),
    };
    Span content;
    gsize len;
    const void *raw = g_bytes_get_data(log, &len);
    g_autofree char *decoded = text_read(raw, len, &content.len);
    content.ptr = decoded;
    const LogParser *parser = log_parser_find(c->parser);
    g_assert_nonnull(parser);
    g_autoptr(StatusMap) map = status_map_new();
    parser->parse(parser, content, &ctx, map);
    g_assert_false(ctx.gave_up);
    g_assert_cmpint(ctx.raised != NULL, ==, json_is_true(json_object_get(want, "raises")));
    if (ctx.raised == NULL) {
        g_autoptr(json_t) got = map_json(map);
        g_autofree char *got_text = pyjson_dump(got, 1);
        g_autofree char *want_text = pyjson_dump(json_object_get(want, "map"), 1);
        g_assert_cmpstr(got_text, ==, want_text);
    }
    log_context_clear(&ctx);
}

static void case_free(gpointer data)
{
    Case *c = data;
    g_free(c->dir);
    g_free(c->parser);
    g_free(c);
}

static void add_case(const char *root, const char *parser, const char *name)
{
    g_autofree char *dir = g_build_filename(root, parser, name, NULL);
    g_autoptr(json_t) expect = read_expect(dir);
    for (int version = GRADER_5; version <= GRADER_4_1; version++) {
        const char *release = release_of((GraderVersion)version);
        if (json_object_get(expect, release) == NULL)
            continue;
        Case *c = g_new0(Case, 1);
        c->dir = g_strdup(dir);
        c->parser = g_strdup(parser);
        c->version = (GraderVersion)version;
        g_autofree char *test = g_strdup_printf("/golden/%s/%s in %s", parser, name, release);
        g_strdelimit(test, "_", ' ');
        g_test_add_data_func_full(test, c, run_case, case_free);
    }
}

static void every_parser_has_a_golden_folder(gconstpointer root)
{
    const LogParser *parser;
    for (guint i = 0; (parser = log_parser_at(i)) != NULL; i++) {
        g_autofree char *dir = g_build_filename(root, parser->name, NULL);
        gboolean inner = g_str_has_prefix(parser->name, "lighthouse_");
        if (!inner && !g_file_test(dir, G_FILE_TEST_IS_DIR))
            g_error("%s has no golden folder", parser->name);
        g_assert_true(log_parser_find(parser->name) == parser);
    }
}

static void every_row_name_finds_its_parser(void)
{
    static const char *const names[][2] = {
        {"parse_log_pytest", "pytest"},      {"parse_log_flask", "pytest"},
        {"parse_log_astroid", "pytest"},     {"parse_log_pylint", "pytest_options"},
        {"parse_log_sphinx", "pytest_v2"},   {"parse_log_sympy", "sympy"},
        {"parse_log_react_pdf", "carbon"},   {"parse_log_prettier", "carbon"},
        {"parse_plotly_js", "plotly_js"},    {"parse_log_micropython_test", "micropython_test"},
        {"parse_log_scratch_gui", "carbon"}, {"unittest", "unittest"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        const LogParser *parser = log_parser_find(names[i][0]);
        g_assert_nonnull(parser);
        g_assert_cmpstr(parser->name, ==, names[i][1]);
    }
    g_assert_null(log_parser_find("parse_log_"));
    g_assert_null(log_parser_find("no_such"));
    g_assert_cmpstr(log_parser_for_repo("psf/requests")->name, ==, "pytest_options");
    g_assert_null(log_parser_for_repo("Psf/requests"));
}

static void names_and_repositories_stand_once(void)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
    const LogParser *parser;
    for (guint i = 0; (parser = log_parser_at(i)) != NULL; i++) {
        g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)parser->name));
        for (guint k = 0; parser->aliases != NULL && parser->aliases[k] != NULL; k++)
            g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)parser->aliases[k]));
        for (guint k = 0; parser->repos != NULL && parser->repos[k] != NULL; k++)
            g_assert_true(g_hash_table_add(seen, (gpointer)(gsize)parser->repos[k]));
    }
}

/* Text made to backtrack; each parser must end, and soon. */
static void no_parser_hangs_on_hostile_text(void)
{
    static const char *const pieces[] = {" ",
                                         "\n",
                                         " (",
                                         "(a) ",
                                         "_ ",
                                         ".py:",
                                         "<a>",
                                         "1) ",
                                         "[ ",
                                         "[OK]",
                                         " - ",
                                         "= .F",
                                         ": E",
                                         "a. ",
                                         " > ",
                                         "\t",
                                         "✓ a ",
                                         "--- PASS: a (",
                                         "Chrome 1 (Linux a) ",
                                         "PASS a (1",
                                         "\n  1) x",
                                         " ... "};
    for (gsize i = 0; i < G_N_ELEMENTS(pieces); i++) {
        g_autoptr(GString) text = g_string_new("--- PASS: [ok]: PASS 1) Starting browser x\nok 1 ");
        while (text->len < 100000)
            g_string_append(text, pieces[i]);
        const LogParser *parser;
        for (guint k = 0; (parser = log_parser_at(k)) != NULL; k++) {
            gint64 start = g_get_monotonic_time();
            LogContext ctx = {.instance_id = "jekyll__jekyll-9141", .repo_version = "9.5"};
            g_autoptr(StatusMap) map = status_map_new();
            parser->parse(parser, (Span){text->str, text->len}, &ctx, map);
            log_context_clear(&ctx);
            gint64 ms = (g_get_monotonic_time() - start) / 1000;
            if (ms > 500)
                g_test_message("%s on \"%s\": %" G_GINT64_FORMAT " ms", parser->name, pieces[i],
                               ms);
            g_assert_cmpint(ms, <, 5000);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    const char *source = g_getenv("ASSAY_SOURCE_ROOT");
    g_autofree char *root =
        g_build_filename(source ? source : ".", "tests", "reward", "golden", NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(GDir) parsers = g_dir_open(root, 0, &error);
    g_assert_no_error(error);
    for (const char *parser; (parser = g_dir_read_name(parsers)) != NULL;) {
        g_autofree char *dir = g_build_filename(root, parser, NULL);
        g_autoptr(GDir) cases = g_dir_open(dir, 0, &error);
        g_assert_no_error(error);
        for (const char *name; (name = g_dir_read_name(cases)) != NULL;)
            add_case(root, parser, name);
    }
    g_test_add_data_func("/registry/every parser has a golden folder", root,
                         every_parser_has_a_golden_folder);
    g_test_add_func("/registry/every row name finds its parser", every_row_name_finds_its_parser);
    g_test_add_func("/registry/names and repositories stand once",
                    names_and_repositories_stand_once);
    g_test_add_func("/registry/no parser hangs on hostile text", no_parser_hangs_on_hostile_text);
    return g_test_run();
}
