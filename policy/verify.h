/*
 * Reads every value of a checkpoint once.
 */
#pragma once

#include "policy/tensors.h"

typedef struct VerifyReport {
    guint64 tensors, params, bytes;
    guint64 not_finite;     /* values that are infinite or not a number */
    guint64 padding_filled; /* values other than zero in rows from vocab_valid on */
    char *first_bad;        /* the first tensor with either; NULL: none */
    char *digest;           /* SHA-256 over names, types, shapes and values, 64 hex digits */
} VerifyReport;

/* Headers, names and shapes must be right (else an error); the report says how the values are.
 * Equal values of equal types give an equal digest, however they are spread over files. */
gboolean verify_checkpoint(const char *dir, VerifyReport *report, GError **error);
void verify_report_clear(VerifyReport *report);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VerifyReport, verify_report_clear)
