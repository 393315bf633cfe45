#include "ring.h"

#define RING_CAP (sizeof ((struct ring *)0)->item / sizeof(int))

void ring_push(struct ring *ring, int value)
{
    ring->item[(ring->head + ring->count) % RING_CAP] = value;
    if (ring->count < RING_CAP)
        ring->count++;
}

int ring_at(const struct ring *ring, unsigned i)
{
    return ring->item[(ring->head + i) % RING_CAP];
}
