/*
 * ULIDs (github.com/ulid/spec) and the two clocks.
 */
#include "base/id.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#define ID_DIGITS 26
static const char id_alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/* The bytes of the next id, big-endian: 6 of time, 10 random. Within one millisecond (or when the
 * clock goes back) it is the last one plus one, so that ids of a process always ascend. */
static const guint8 *id_next(void)
{
    static _Thread_local guint8 bytes[16];
    static _Thread_local gint64 last_ms;
    gint64 now_ms = clock_wall_ms();
    if (now_ms <= last_ms) {
        for (int i = 15; i >= 0 && ++bytes[i] == 0; i--)
            continue;
        return bytes;
    }
    last_ms = now_ms;
    for (int i = 0; i < 6; i++)
        bytes[i] = (guint8)(now_ms >> (40 - 8 * i));
    g_assert(getrandom(bytes + 6, 10, 0) == 10);
    return bytes;
}

char *id_new(const char *prefix)
{
    const guint8 *bytes = id_next();

    char digits[ID_DIGITS + 1] = {0};
    for (int i = 0; i < ID_DIGITS; i++) {
        int bit = i * 5 - 2; /* 130 digits bits hold 128: the first digit has two zero bits */
        guint value = 0;
        for (int b = bit; b < bit + 5; b++)
            value = value << 1 | (b < 0 ? 0u : (bytes[b / 8] >> (7 - b % 8)) & 1u);
        digits[i] = id_alphabet[value];
    }
    return g_strdup_printf("%s_%s", prefix, digits);
}

gboolean id_is(const char *text, const char *prefix)
{
    gsize n = strlen(prefix);
    if (strncmp(text, prefix, n) != 0 || text[n] != '_')
        return FALSE;
    const char *digits = text + n + 1;
    return strspn(digits, id_alphabet) == ID_DIGITS && digits[ID_DIGITS] == '\0';
}

gint64 clock_wall_ms(void)
{
    return g_get_real_time() / 1000;
}

gint64 clock_mono_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (gint64)now.tv_sec * 1000000000 + now.tv_nsec;
}
