/*
 * Drawn hashes. What is found never depends on them, only how long it takes.
 */
#include "policy/token_hash.h"

static guint64 drawn(void)
{
    static gsize once;
    if (g_once_init_enter(&once))
        g_once_init_leave(&once, (gsize)((guint64)g_random_int() << 32 | g_random_int()) | 1);
    return once;
}

guint token_hash_bytes(const char *bytes, gsize len)
{
    guint64 hash = drawn();
    for (gsize i = 0; i < len; i++)
        hash = (hash ^ (guint8)bytes[i]) * 1099511628211ull;
    return (guint)(hash ^ hash >> 32);
}

guint64 token_hash_word(guint64 word, guint bits)
{
    return word * drawn() >> (64 - bits);
}
