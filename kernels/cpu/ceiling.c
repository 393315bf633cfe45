/*
 * What this instruction set can do at best, for benchmarks to be held against: multiply-adds in
 * registers, and reading memory. One thread each; the caller runs as many as it has.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* Chains in flight: latency times units of any machine we know, and no more than there are
 * registers beside the two factors. */
#define CHAINS 12

double CPU(ceiling_flops)(size_t rounds, GemmPrecision precision)
{
    vf acc[CHAINS];
    float sum = 0;

#ifdef CPU_AMX
    if (precision == GEMM_ROUNDED)
        return CPU(amx_ceiling)(rounds);
#else
    (void)precision;
#endif
    for (int c = 0; c < CHAINS; c++)
        acc[c] = vset((float)c);
    for (size_t r = 0; r < rounds; r++) {
        vf a = vset(0.999f), b = vset(0.001f);

        __asm__ volatile("" : "+x"(a), "+x"(b)); /* no round may be foreseen */
        for (int c = 0; c < CHAINS; c++)
            acc[c] = vfma(acc[c], a, b);
    }
    for (int c = 0; c < CHAINS; c++)
        sum += vsum(acc[c]);
    return sum == 12345 ? 0 : 2.0 * CHAINS * W * (double)rounds;
}

/* Places read at once: one alone does not keep memory busy. */
#define STREAMS 4

float CPU(ceiling_read)(const float *from, size_t n)
{
    size_t part = n / STREAMS;
    vf sum[4] = {0};

    for (size_t i = 0; i + 4 * W <= part; i += 4 * W)
        for (int s = 0; s < STREAMS; s++)
            for (int c = 0; c < 4; c++)
                sum[c] += vload(from + (size_t)s * part + i + (size_t)c * W);
    return vsum(sum[0] + sum[1] + sum[2] + sum[3]);
}
