#include "textcopy.h"

#include <string.h>

unsigned long text_copy(char *out, const char *in, unsigned long cap)
{
    unsigned long len = strlen(in);
    unsigned long n = len < cap ? len : cap;

    memcpy(out, in, n);
    out[n] = '\0';
    return len;
}
