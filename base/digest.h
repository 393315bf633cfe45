/*
 * Content digests over fields: each field is length-prefixed, so no two field lists collide.
 *
 *     g_autoptr(Digest) d = digest_new("assay.grade.v1");
 *     digest_add_str(d, task_sha); digest_add(d, patch, patch_len);
 *     g_autofree char *hex = digest_finish(d);      64 hex digits
 */
#pragma once

#include <glib.h>

typedef struct Digest Digest;

/* SHA-256 started with the domain word, itself a field. */
Digest *digest_new(const char *domain);
void digest_free(Digest *digest);
void digest_add(Digest *digest, const void *data, gsize len);
/* NULL counts as a field of its own, different from "". */
void digest_add_str(Digest *digest, const char *text);
/* 64 lower-case hex digits; the digest may not be added to afterwards. */
char *digest_finish(Digest *digest);

/* Plain SHA-256 of bytes, 64 lower-case hex digits. */
char *digest_bytes(const void *data, gsize len);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Digest, digest_free)
