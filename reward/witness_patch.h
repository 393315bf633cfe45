/*
 * A static look at a candidate patch for code and files that tamper with grading.
 */
#pragma once

#include "reward/patch_scan.h"
#include "reward/witness.h"

/* Adds a finding per suspicious added line or file name. `test_paths` and `gold_paths` as for
 * path_class(); either may be NULL. Matches text, not meaning: the weights are set so that only
 * what honest patches do not contain is WITNESS_SUSPECT. */
void witness_patch(const PatchScan *scan, GHashTable *test_paths, GHashTable *gold_paths,
                   GPtrArray *findings);
