/*
 * ULIDs (github.com/ulid/spec) and the two clocks.
 */
#include "base/id.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#define ID_DIGITS 26
static const char id_alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/* Fills 6 bytes of time and 10 of chance, big-endian. Within one millisecond (or when the clock
 * steps back) the last value is counted up, so ids of one process sort in the order of making. */
static void id_bytes(guint8 bytes[16])
{
    static GMutex lock;
    static gint64 last_ms;
    static guint8 last[16];

    g_mutex_lock(&lock);
    gint64 now_ms = clock_wall_ms();
    if (now_ms > last_ms) {
        last_ms = now_ms;
        for (int i = 0; i < 6; i++)
            last[i] = (guint8)(now_ms >> (40 - 8 * i));
        g_assert(getrandom(last + 6, 10, 0) == 10);
    } else {
        for (int i = 15; ++last[i] == 0 && i > 0; i--)
            continue;
    }
    memcpy(bytes, last, 16);
    g_mutex_unlock(&lock);
}

char *id_new(const char *prefix)
{
    guint8 bytes[16];
    id_bytes(bytes);

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
