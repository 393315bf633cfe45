/*
 * difflib's SequenceMatcher ratio, and SWE-RL's diff similarity made of it.
 */
#pragma once

#include "reward/text.h"

/* Longer texts (in characters) than this are not compared character by character. */
#define SIMILARITY_CHARS_MAX 20000
/* Steps of the longest-match search after which a comparison falls back. */
#define SIMILARITY_STEPS_MAX 400000000u

/*
 *   ratio = 2 * M / T      M = characters in matching blocks, T = characters of both; 1 when T = 0
 *
 * Blocks are found as difflib finds them with autojunk=False: the longest match (leftmost in a,
 * then leftmost in b), then left and right of it. `a` and `b` are valid UTF-8. Returns FALSE when
 * the texts are longer than SIMILARITY_CHARS_MAX or the search passes SIMILARITY_STEPS_MAX.
 */
gboolean similarity_ratio(Span a, Span b, double *ret_ratio);

/*
 * SWE-RL's reward of a patch (facebookresearch/swe-rl, src/swerl/core/reward.py,
 * calculate_reward_unidiff): the mean, over the files that either patch touches, of the ratio
 * between what the two patches say about that file; a file that only one of them touches counts
 * 0, two patches that touch nothing give 1. What a patch says about a file: its hunks without the
 * file headers, after "rename from X to Y" for a renamed one. Binary files are left out; a
 * malformed patch touches nothing. Files beyond the caps are compared line by line instead, with
 * the same formula over lines; *ret_capped tells whether any was.
 */
double similarity_patches(const void *predicted, gsize predicted_len, const void *oracle,
                          gsize oracle_len, gboolean *ret_capped);
