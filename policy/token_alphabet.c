/*
 * Bytes that print stand for themselves as Latin-1 characters; the other 68, in order, are U+0100
 * and on.
 *
 * Not here: ids. M1 gives byte b the id b, GPT-2 the place of its character.
 */
#include "policy/token_alphabet.h"

#include "policy/utf8.h"

#define LETTERS (0x100u + 68u)

typedef struct Alphabet {
    guint16 letter[256];
    gint16 byte[LETTERS]; /* -1: no letter */
} Alphabet;

static gboolean prints(guint b)
{
    return ('!' <= b && b <= '~') || (0xa1 <= b && b <= 0xac) || (0xae <= b && b <= 0xff);
}

static const Alphabet *alphabet(void)
{
    static Alphabet table;
    static gsize once;
    if (g_once_init_enter(&once)) {
        guint next = 0x100;
        for (guint i = 0; i < LETTERS; i++)
            table.byte[i] = -1;
        for (guint b = 0; b < 256; b++) {
            table.letter[b] = (guint16)(prints(b) ? b : next++);
            table.byte[table.letter[b]] = (gint16)b;
        }
        g_assert(next == LETTERS);
        g_once_init_leave(&once, 1);
    }
    return &table;
}

gboolean token_alphabet_read(const char *text, gsize len, GString *bytes)
{
    const Alphabet *table = alphabet();
    for (gsize at = 0; at < len;) {
        Utf8Kind kind;
        guint n = utf8_step(text + at, len - at, &kind);
        gunichar c = kind == UTF8_WHOLE ? g_utf8_get_char(text + at) : LETTERS;
        if (c >= LETTERS || table->byte[c] < 0)
            return FALSE;
        g_string_append_c(bytes, (char)table->byte[c]);
        at += n;
    }
    return TRUE;
}

void token_alphabet_write(const char *bytes, gsize len, GString *text)
{
    for (gsize i = 0; i < len; i++)
        g_string_append_unichar(text, alphabet()->letter[(guint8)bytes[i]]);
}
