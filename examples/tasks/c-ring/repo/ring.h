/* A ring of ints. Push on a full ring drops the oldest. */
struct ring {
    int item[4];
    unsigned head, count;
};

void ring_push(struct ring *ring, int value);
int ring_at(const struct ring *ring, unsigned i); /* 0 = oldest */
