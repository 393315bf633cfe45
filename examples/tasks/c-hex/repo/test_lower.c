#include "hex.h"

#include <stdio.h>

int main(void)
{
    int bad = 0, ok;
    ok = hex_value('0') == 0 && hex_value('9') == 9;
    bad |= !ok;
    printf("%s digits\n", ok ? "PASS" : "FAIL");
    ok = hex_value('a') == 10 && hex_value('f') == 15;
    bad |= !ok;
    printf("%s lower_case\n", ok ? "PASS" : "FAIL");
    ok = hex_value('g') == -1 && hex_value(' ') == -1;
    bad |= !ok;
    printf("%s others_are_refused\n", ok ? "PASS" : "FAIL");
    return bad;
}
