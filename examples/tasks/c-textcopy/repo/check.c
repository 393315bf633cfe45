#include "textcopy.h"

#include <stdio.h>
#include <string.h>

static int failed;

static void report(const char *name, int ok)
{
    printf("%s %s\n", ok ? "PASS" : "FAIL", name);
    failed |= !ok;
}

int main(void)
{
    report("short_text_is_copied", (text_copy((char[8]){0}, "abc", 8) == 3));
    report("empty_text", (text_copy((char[8]){0}, "", 8) == 0));
    return failed;
}
