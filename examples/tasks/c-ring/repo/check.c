#include "ring.h"

#include <stdio.h>

static int failed;

static void report(const char *name, int ok)
{
    printf("%s %s\n", ok ? "PASS" : "FAIL", name);
    failed |= !ok;
}

/* What stands at `i` after pushing 1..n. */
static int after(int n, unsigned i)
{
    struct ring ring = {{0}, 0, 0};
    for (int v = 1; v <= n; v++)
        ring_push(&ring, v);
    return ring_at(&ring, i);
}

int main(void)
{
    report("first_item", after(1, 0) == 1);
    report("full_ring_keeps_order", after(4, 0) == 1 && after(4, 3) == 4);
    return failed;
}
