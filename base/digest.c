/*
 * SHA-256 over length-prefixed fields (GLib does the hashing).
 */
#include "base/digest.h"

#include <string.h>

struct Digest {
    GChecksum *sum;
};

static void digest_add_len(Digest *digest, guint32 len)
{
    guint32 be = GUINT32_TO_BE(len);
    g_checksum_update(digest->sum, (const guchar *)&be, sizeof be);
}

Digest *digest_new(const char *domain)
{
    Digest *digest = g_new0(Digest, 1);
    digest->sum = g_checksum_new(G_CHECKSUM_SHA256);
    digest_add_str(digest, domain);
    return digest;
}

void digest_free(Digest *digest)
{
    if (digest == NULL)
        return;
    g_checksum_free(digest->sum);
    g_free(digest);
}

void digest_add(Digest *digest, const void *data, gsize len)
{
    g_assert(len < G_MAXUINT32);
    digest_add_len(digest, (guint32)len);
    g_checksum_update(digest->sum, data, (gssize)len);
}

void digest_add_str(Digest *digest, const char *text)
{
    if (text == NULL)
        digest_add_len(digest, G_MAXUINT32);
    else
        digest_add(digest, text, strlen(text));
}

char *digest_finish(Digest *digest)
{
    return g_strdup(g_checksum_get_string(digest->sum));
}

char *digest_bytes(const void *data, gsize len)
{
    return g_compute_checksum_for_data(G_CHECKSUM_SHA256, data, len);
}
