/*
 * Rewards, similarity and the files of a run.
 */
#include "reward/pyjson.h"
#include "reward/report.h"
#include "reward/reward.h"
#include "reward/similarity.h"

#include <string.h>

static void a_broken_test_never_earns_more_than_doing_nothing(void)
{
    Reward nothing = reward_make(&(RewardInput){0});
    Reward full = reward_make(
        &(RewardInput){.resolution = RESOLUTION_FULL, .f2p = 1, .p2p = 1, .applied = TRUE});
    Reward broken = reward_make(
        &(RewardInput){.resolution = RESOLUTION_NO, .f2p = 1, .p2p = 0.9, .applied = TRUE});
    Reward partial = reward_make(
        &(RewardInput){.resolution = RESOLUTION_PARTIAL, .f2p = 0.5, .p2p = 1, .applied = TRUE});
    Reward suspect = reward_make(&(RewardInput){.resolution = RESOLUTION_FULL,
                                                .f2p = 1,
                                                .p2p = 1,
                                                .applied = TRUE,
                                                .suspect = TRUE,
                                                .similarity_known = TRUE,
                                                .similarity = 0.9});
    Reward unreadable = reward_make(&(RewardInput){.invalid_format = TRUE});
    g_assert_cmpfloat(nothing.shaped, ==, 0);
    g_assert_cmpfloat(full.binary, ==, 1);
    g_assert_cmpfloat(full.shaped, ==, 1);
    g_assert_cmpfloat(full.partial, ==, 1);
    g_assert_cmpfloat(broken.shaped, <=, nothing.shaped);
    g_assert_cmpfloat(broken.binary, ==, 0);
    g_assert_cmpfloat_with_epsilon(partial.shaped, 0.15, 1e-12);
    g_assert_cmpfloat(partial.partial, ==, 0.2);
    g_assert_cmpfloat(suspect.binary + suspect.shaped + suspect.f2p + suspect.similarity, ==, 0);
    g_assert_cmpfloat(unreadable.shaped, ==, -0.05);
    g_assert_cmpfloat(unreadable.similarity, ==, -1);
}

static void ratios_equal_difflibs(void)
{
    /* difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() of CPython 3.11. */
    static const struct {
        const char *a, *b;
        double ratio;
    } cases[] = {
        {"", "", 1.0},
        {"a", "", 0.0},
        {"abcd", "bcde", 0.75},
        {"private Thread currentThread;", "private volatile Thread currentThread;",
         0.8656716417910447},
        {"qabxcd", "abycdf", 0.6666666666666666},
        {"abxab", "abab", 0.8888888888888888},
        {"h\xc3\xa9llo w\xc3\xb6rld", "hello world", 0.8181818181818182},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        double ratio = -1;
        g_assert_true(similarity_ratio(span_of(cases[i].a), span_of(cases[i].b), &ratio));
        g_assert_cmpfloat(ratio, ==, cases[i].ratio);
    }
    g_autofree char *big = g_strnfill(SIMILARITY_CHARS_MAX + 1, 'a');
    double untouched = 7;
    g_assert_false(similarity_ratio(span_of(big), span_of("a"), &untouched));
    g_assert_cmpfloat(untouched, ==, 7);
}

#define ONE "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
#define TWO "--- a/y\n+++ b/y\n@@ -1 +1 @@\n-c\n+d\n"

static double similar(const char *a, const char *b)
{
    gboolean capped;
    return similarity_patches(a, strlen(a), b, strlen(b), &capped);
}

static void patches_compare_file_by_file(void)
{
    g_assert_cmpfloat(similar(ONE, ONE), ==, 1.0);
    g_assert_cmpfloat(similar("diff --git a/x b/x\nindex 1..2 100644\n" ONE, ONE), ==, 1.0);
    g_assert_cmpfloat(similar(ONE, TWO), ==, 0.0);
    g_assert_cmpfloat(similar(ONE TWO, ONE), ==, 0.5);
    g_assert_cmpfloat(similar("", ""), ==, 1.0);
    g_assert_cmpfloat(similar("", ONE), ==, 0.0);
    g_assert_cmpfloat(similar("not a patch", ONE), ==, 0.0);
}

static void a_report_is_written_as_python_writes_it(void)
{
    const char *f2p[] = {"t \"\xc3\xa9\xf0\x9f\x98\x80\x7f\t", NULL};
    const char *log = "PASSED x\n";
    GradeInput in = {.log_parser = "pytest",
                     .f2p = f2p,
                     .log = log,
                     .log_len = strlen(log),
                     .slice_end = strlen(log)};
    g_autoptr(GError) error = NULL;
    g_auto(GradeResult) result = {0};
    g_assert_true(grade_log(&in, &result, &error));
    g_autoptr(json_t) report =
        report_instance(GRADER_5, "a__b-1", FALSE, &result, (FailureClass){0});
    g_autofree char *text = report_instance_text(report);
    g_assert_cmpstr(text, ==,
                    "{\n    \"a__b-1\": {\n        \"patch_is_None\": false,\n"
                    "        \"patch_exists\": true,\n"
                    "        \"patch_successfully_applied\": true,\n"
                    "        \"resolved\": false,\n        \"infra_failure\": false,\n"
                    "        \"tests_status\": {\n            \"FAIL_TO_PASS\": {\n"
                    "                \"success\": [],\n                \"failure\": [\n"
                    "                    \"t \\\"\\u00e9\\ud83d\\ude00\\u007f\\t\"\n"
                    "                ]\n            },\n            \"PASS_TO_PASS\": {\n"
                    "                \"success\": [],\n                \"failure\": []\n"
                    "            },\n            \"FAIL_TO_FAIL\": {\n"
                    "                \"success\": [],\n                \"failure\": []\n"
                    "            },\n            \"PASS_TO_FAIL\": {\n"
                    "                \"success\": [],\n                \"failure\": []\n"
                    "            }\n        }\n    }\n}");

    g_autoptr(json_t) none = report_instance(GRADER_4_1, "i", TRUE, NULL, (FailureClass){0});
    g_autofree char *none_text = pyjson_dump(none, 0);
    g_assert_cmpstr(none_text, ==,
                    "{\"i\": {\"patch_is_None\": true, \"patch_exists\": false, "
                    "\"patch_successfully_applied\": false, \"resolved\": false}}");
}

static void a_run_summary_has_the_fields_of_its_release(void)
{
    const ReportRow rows[] = {
        {"c", REPORT_RESOLVED},
        {"a", REPORT_UNRESOLVED, {FAILURE_TIER_AMBIGUOUS, "missing_module"}},
        {"b", REPORT_ERROR, {FAILURE_TIER_ENVIRONMENT, "out_of_memory"}},
        {"d", REPORT_EMPTY_PATCH},
        {"e", REPORT_INCOMPLETE},
        {"z", REPORT_NOT_IN_DATASET},
    };
    g_autoptr(json_t) five = report_run(GRADER_5, rows, G_N_ELEMENTS(rows));
    g_autofree char *text = pyjson_dump(five, 0);
    g_assert_cmpstr(
        text, ==,
        "{\"total_instances\": 5, \"submitted_instances\": 5, \"completed_instances\": 2, "
        "\"resolved_instances\": 1, \"unresolved_instances\": 1, \"infra_failure_instances\": 1, "
        "\"ambiguous_failure_instances\": 1, \"empty_patch_instances\": 1, "
        "\"error_instances\": 1, \"completed_ids\": [\"a\", \"c\"], \"incomplete_ids\": [\"e\"], "
        "\"empty_patch_ids\": [\"d\"], \"submitted_ids\": [\"a\", \"b\", \"c\", \"d\", \"z\"], "
        "\"resolved_ids\": [\"c\"], \"unresolved_ids\": [\"a\"], \"infra_failure_ids\": [\"b\"], "
        "\"ambiguous_failure_ids\": [\"a\"], \"failure_reasons\": {\"a\": \"missing_module\", "
        "\"b\": \"out_of_memory\"}, \"error_ids\": [\"b\"], \"schema_version\": 2}");

    g_autoptr(json_t) four = report_run(GRADER_4_1, rows, G_N_ELEMENTS(rows));
    g_autofree char *four_text = report_run_text(four);
    g_assert_true(g_str_has_suffix(four_text, "    \"schema_version\": 2,\n"
                                              "    \"unstopped_instances\": 0,\n"
                                              "    \"unstopped_containers\": [],\n"
                                              "    \"unremoved_images\": []\n}\n"));
    g_assert_null(strstr(four_text, "infra"));
    g_autofree char *name = report_run_file_name("org/model", "r1");
    g_assert_cmpstr(name, ==, "org__model.r1.json");
}

static void the_first_signature_classifies_a_failure(void)
{
    g_assert_cmpstr(report_classify(SPAN("x\nKilled\ny"), SPAN("")).reason, ==, "out_of_memory");
    g_assert_null(report_classify(SPAN("Killed by x"), SPAN("")).reason);
    FailureClass both =
        report_classify(SPAN("ModuleNotFoundError"), SPAN("Could not resolve host: x"));
    g_assert_cmpstr(both.reason, ==, "network_unreachable");
    g_assert_cmpint(both.tier, ==, FAILURE_TIER_ENVIRONMENT);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/reward/a broken test never earns more than doing nothing",
                    a_broken_test_never_earns_more_than_doing_nothing);
    g_test_add_func("/similarity/ratios equal difflibs", ratios_equal_difflibs);
    g_test_add_func("/similarity/patches compare file by file", patches_compare_file_by_file);
    g_test_add_func("/report/a report is written as python writes it",
                    a_report_is_written_as_python_writes_it);
    g_test_add_func("/report/a run summary has the fields of its release",
                    a_run_summary_has_the_fields_of_its_release);
    g_test_add_func("/report/the first signature classifies a failure",
                    the_first_signature_classifies_a_failure);
    return g_test_run();
}
