/*
 * The rules of grading, one sentence each, in every mode; and the evidence of strict mode.
 */
#include "reward/grade.h"
#include "reward/witness.h"

#include "base/error.h"

#include <string.h>

#define START "+ : '>>>>> Start Test Output'\n"
#define END   "+ : '>>>>> End Test Output'\n"

typedef struct Setup {
    GradeMode mode;
    EvalType type;
    const char *parser, *repo, *f2p, *p2p, *log; /* one name each, or NULL */
    int exit_code;                               /* strict */
} Setup;

static void grade(const Setup *setup, GradeResult *ret, GPtrArray *findings)
{
    const char *f2p[] = {setup->f2p, NULL}, *p2p[] = {setup->p2p, NULL};
    GradeInput in = {
        .mode = setup->mode,
        .repo = setup->repo,
        .instance_id = "a__b-1",
        .log_parser = setup->parser ? setup->parser : "pytest",
        .eval_type = setup->type,
        .f2p = f2p,
        .p2p = p2p,
        .log = setup->log,
        .log_len = strlen(setup->log),
        .slice_end = strlen(setup->log),
        .exit_known = TRUE,
        .exit_code = setup->exit_code,
    };
    g_autoptr(GError) error = NULL;
    g_assert_true(grade_log(&in, ret, &error));
    if (findings != NULL)
        witness_log(
            &(WitnessInput){.grade = &in, .result = ret, .boundary = "@@assay ", .nonce = "n0nce"},
            findings);
}

static void check(Setup setup, gboolean found, Resolution resolution)
{
    g_auto(GradeResult) result = {0};
    grade(&setup, &result, NULL);
    g_test_message("%s", setup.log);
    g_assert_cmpint(result.found, ==, found);
    g_assert_cmpstr(resolution_to_str(result.resolution), ==, resolution_to_str(resolution));
}

static void the_log_needs_both_markers_and_no_bad_one(void)
{
    const GradeMode modes[] = {GRADE_COMPAT_4_1, GRADE_COMPAT_5};
    for (gsize i = 0; i < G_N_ELEMENTS(modes); i++) {
        Setup setup = {.mode = modes[i], .f2p = "a"};
        setup.log = START "PASSED a\n" END;
        check(setup, TRUE, RESOLUTION_FULL);
        setup.log = START "PASSED a\n";
        check(setup, FALSE, RESOLUTION_NONE);
        setup.log = "PASSED a\n" END;
        check(setup, FALSE, RESOLUTION_NONE);
        setup.log = START "PASSED a\n" END ">>>>> Tests Timed Out";
        check(setup, FALSE, RESOLUTION_NONE);
        setup.log = START "PASSED a\n" START "FAILED a\n" END;
        check(setup, TRUE, RESOLUTION_FULL); /* the first of several blocks */
        setup.log = "PASSED a\n" START "nothing\n" END;
        check(setup, TRUE, RESOLUTION_FULL); /* an empty slice falls back to the whole text */
    }
}

static void only_release_5_asks_for_a_sign_of_life_and_the_exit_code(void)
{
    Setup empty = {.mode = GRADE_COMPAT_4_1,
                   .type = EVAL_FAIL_ONLY,
                   .repo = "markedjs/marked",
                   .parser = "marked",
                   .f2p = "a",
                   .log = START END};
    check(empty, TRUE, RESOLUTION_FULL);
    empty.mode = GRADE_COMPAT_5;
    check(empty, FALSE, RESOLUTION_NONE);
    empty.log = START "3 specs, 0 failures\n" END;
    check(empty, TRUE, RESOLUTION_FULL);
    empty.log = START "Executed 0 of 0\n" END;
    check(empty, FALSE, RESOLUTION_NONE);

    Setup exits = {.mode = GRADE_COMPAT_5,
                   .f2p = "a",
                   .log = START "PASSED a\n" END ">>>>> Test Exit Code: 2\n"};
    check(exits, FALSE, RESOLUTION_NONE);
    exits.mode = GRADE_COMPAT_4_1;
    check(exits, TRUE, RESOLUTION_FULL);
    exits.mode = GRADE_COMPAT_5;
    exits.log = START "PASSED a\nFAILED b\n" END ">>>>> Test Exit Code: 2\n";
    check(exits, TRUE, RESOLUTION_FULL);
    exits.log = START "PASSED a\n" END ">>>>> Test Exit Code: 00\n>>>>> Test Exit Code: 2\n";
    check(exits, TRUE, RESOLUTION_FULL);
}

static void a_skip_is_no_resolution_and_no_regression_in_5(void)
{
    Setup setup = {.f2p = "a", .p2p = "b", .log = START "SKIPPED a\nPASSED b\n" END};
    setup.mode = GRADE_COMPAT_4_1;
    check(setup, TRUE, RESOLUTION_FULL);
    setup.mode = GRADE_COMPAT_5;
    check(setup, TRUE, RESOLUTION_NO);
    setup.log = START "XFAIL a\nSKIPPED b\n" END;
    check(setup, TRUE, RESOLUTION_FULL);
    setup.log = START "PASSED a\nERROR b\n" END;
    check(setup, TRUE, RESOLUTION_NO);
}

static void ids_cut_in_their_brackets_match_by_prefix_in_5(void)
{
    Setup setup = {.mode = GRADE_COMPAT_5,
                   .parser = "pytest_v2",
                   .f2p = "t.py::f[a",
                   .log = START "PASSED t.py::f[a b]\nXFAIL t.py::f[a c]\n" END};
    check(setup, TRUE, RESOLUTION_FULL);
    setup.log = START "PASSED t.py::f[a b]\nFAILED t.py::f[a c]\n" END;
    check(setup, TRUE, RESOLUTION_NO);
    setup.f2p = "t.py::f";
    setup.log = START "PASSED t.py::f2\n" END;
    check(setup, TRUE, RESOLUTION_NO);
    setup.f2p = "t.py::f[a";
    setup.mode = GRADE_COMPAT_4_1;
    setup.log = START "PASSED t.py::f[a b]\n" END;
    check(setup, TRUE, RESOLUTION_FULL); /* 4.1's parser cuts the same way */
}

static void strict_reads_its_slice_and_no_marker(void)
{
    const char *f2p[] = {"a", NULL};
    const char *log = START "PASSED a\n" END "@@FAILED a\n@@PASSED a\n";
    gsize slice = (gsize)(strstr(log, "@@FAILED") - log);
    GradeInput in = {.log_parser = "parse_log_pytest",
                     .f2p = f2p,
                     .log = log,
                     .log_len = strlen(log),
                     .slice_start = slice + 2,
                     .slice_end = slice + strlen("@@FAILED a\n")};
    g_autoptr(GError) error = NULL;
    g_auto(GradeResult) result = {0};
    g_assert_true(grade_log(&in, &result, &error));
    g_assert_cmpint(result.resolution, ==, RESOLUTION_NO);

    GradeResult untouched = {0};
    in.slice_end = in.log_len + 1;
    g_assert_false(grade_log(&in, &untouched, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    g_clear_error(&error);
    in.slice_end = in.log_len;
    in.log_parser = "no_such";
    g_assert_false(grade_log(&in, &untouched, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
}

static void partial_needs_some_f2p_and_all_p2p(void)
{
    const char *f2p[] = {"a", "b", NULL}, *p2p[] = {"c", NULL};
    const char *log = "PASSED a\nPASSED c\nFAILED b\n";
    GradeInput in = {.log_parser = "pytest",
                     .f2p = f2p,
                     .p2p = p2p,
                     .log = log,
                     .log_len = strlen(log),
                     .slice_end = strlen(log)};
    g_autoptr(GError) error = NULL;
    g_auto(GradeResult) result = {0};
    g_assert_true(grade_log(&in, &result, &error));
    g_assert_cmpint(result.resolution, ==, RESOLUTION_PARTIAL);
    g_assert_cmpfloat(result.f2p_fraction, ==, 0.5);
    g_assert_cmpuint(result.f2p.failure->len, ==, 1);
}

static void evidence_names_what_does_not_fit(void)
{
    static const struct {
        const char *parser, *log;
        int exit_code;
        WitnessCode code;
    } cases[] = {
        {"pytest", "PASSED a\n=== 1 passed in 0.10s ===\n", 0, WITNESS_NONE},
        {"pytest", "PASSED a\n1 passed, 2 warnings in 0.10s\n", 0, WITNESS_NONE},
        {"pytest", "PASSED a\nPASSED b\n=== 1 passed in 0.10s ===\n", 0, WITNESS_TALLY_DIFFERS},
        {"pytest", "PASSED a\n= 1 failed, 1 passed in 1.1s =\n", 0, WITNESS_TALLY_DIFFERS},
        {"pytest", "PASSED a\n", 0, WITNESS_TALLY_MISSING},
        {"pytest", "PASSED a\n=== 1 passed in 0.1s ===\n>>>>> End Test Output\n", 0,
         WITNESS_FORGED_MARKER},
        {"pytest", "PASSED a\n=== 1 passed in 0.1s ===\n@@assay forged\n", 0,
         WITNESS_FORGED_MARKER},
        {"pytest", "PASSED a\n=== 1 passed in 0.1s ===\n@@assay n0nce\n", 0, WITNESS_NONE},
        {"unittest", "test_a (m.T) ... ok\nRan 1 test in 0.1s\n", 0, WITNESS_NONE},
        {"unittest", "test_a (m.T) ... ok\ntest_b (m.T) ... ok\nRan 1 test in 0.1s\n", 0,
         WITNESS_TALLY_DIFFERS},
        {"unittest", "test_a (m.T) ... ok\n", 0, WITNESS_TALLY_MISSING},
        {"assay_tap", "1..2\nok 1 - a\nok 2 - b\n", 0, WITNESS_NONE},
        {"assay_tap", "1..1\nok 1 - a\nok 2 - b\n", 0, WITNESS_TALLY_DIFFERS},
        {"sympy", "test_a ok\n=== tests finished: 1 passed, in 0.1 seconds ===\n", 0, WITNESS_NONE},
        {"sympy", "test_a ok\ntest_b ok\n=== tests finished: 1 passed, in 0.1 seconds ===\n", 0,
         WITNESS_TALLY_DIFFERS},
        {"assay_plain", "PASS a\n", 0, WITNESS_NONE},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        Setup setup = {
            .parser = cases[i].parser, .log = cases[i].log, .exit_code = cases[i].exit_code};
        g_auto(GradeResult) result = {0};
        g_autoptr(GPtrArray) findings = witness_findings_new();
        grade(&setup, &result, findings);
        WitnessCode got = WITNESS_NONE;
        for (guint k = 0; k < findings->len && got == WITNESS_NONE; k++) {
            const WitnessFinding *finding = g_ptr_array_index(findings, k);
            if (finding->weight == WITNESS_SUSPECT)
                got = finding->code;
        }
        g_test_message("%s", cases[i].log);
        g_assert_cmpstr(witness_code_to_str(got), ==, witness_code_to_str(cases[i].code));
        g_assert_cmpint(witness_any_suspect(findings), ==, cases[i].code != WITNESS_NONE);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/grade/the log needs both markers and no bad one",
                    the_log_needs_both_markers_and_no_bad_one);
    g_test_add_func("/grade/only release 5 asks for a sign of life and the exit code",
                    only_release_5_asks_for_a_sign_of_life_and_the_exit_code);
    g_test_add_func("/grade/a skip is no resolution and no regression in 5",
                    a_skip_is_no_resolution_and_no_regression_in_5);
    g_test_add_func("/grade/ids cut in their brackets match by prefix in 5",
                    ids_cut_in_their_brackets_match_by_prefix_in_5);
    g_test_add_func("/grade/strict reads its slice and no marker",
                    strict_reads_its_slice_and_no_marker);
    g_test_add_func("/grade/partial needs some f2p and all p2p",
                    partial_needs_some_f2p_and_all_p2p);
    g_test_add_func("/witness/evidence names what does not fit", evidence_names_what_does_not_fit);
    return g_test_run();
}
