/*
 * A fuzz target: one parser, fed with bytes that anybody may have written.
 *
 * The entry point is libFuzzer's, so that a target can also be linked with it (leave
 * fuzz_driver.c out: clang -fsanitize=fuzzer,address) or with AFL++. By default fuzz_driver.c
 * feeds it: the seeds, the files named as arguments, then mutations of both, the same in every
 * run.
 */
#pragma once

#include <glib.h>

/* Returns 0. What must hold is asserted: a false assertion is the finding. */
int LLVMFuzzerTestOneInput(const guint8 *data, gsize len);

/* Well-formed inputs to start from. */
void fuzz_seeds(GPtrArray *seeds); /* of GBytes */
