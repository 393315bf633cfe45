/*
 * A fuzz target: one file that defines these two, in the shape that libFuzzer and AFL link with.
 *
 *     cc -fsanitize=fuzzer,address fuzz_spec.c ...      leaves fuzz_driver.c out
 *
 * The driver of the test suite changes the seeds for a fixed number of rounds, always in the same way.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

/* Must not crash, hang or break an assertion, whatever the bytes are. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The target's seeds, one after another; FALSE when there is no such one. */
gboolean fuzz_seed(guint i, GByteArray *ret_bytes);
