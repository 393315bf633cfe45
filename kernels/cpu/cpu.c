/*
 * Which CPU table this machine runs: the widest that its processor and operating system offer.
 *
 * Invariants
 *  1. Chosen by feature bits, never by model; the compiler's test includes the saved registers.
 *     AMX also wants the operating system's word that this process may have its tiles.
 *  2. ASSAY_CPU=plain|avx2|avx512|amx takes a narrower one, for tests and comparisons; a wider one
 *     than the machine has is not taken.
 */
#include "kernels/cpu/tables.h"

#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    const char *name;
    int (*works)(void);
    void (*table)(Ops *ops);
} Isa;

static int works_plain(void)
{
    return 1;
}

#ifdef __x86_64__
static int works_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int works_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
#define XFEATURE_TILEDATA 18
#define XCR0_TILES        (3u << 17)            /* configuration and data are saved */
#define CPUID7_AMX        (1u << 22 | 1u << 24) /* bf16, tiles */
#define CPUID1_OSXSAVE    (1u << 27)

static int works_amx(void)
{
    unsigned a, b, c, d, saved, high;

    if (!works_avx512() || !__builtin_cpu_supports("avx512bf16") ||
        !__get_cpuid(1, &a, &b, &c, &d) || !(c & CPUID1_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & CPUID7_AMX) != CPUID7_AMX ||
        (saved & XCR0_TILES) != XCR0_TILES)
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILEDATA) == 0;
}
#endif

/* Widest first. */
static const Isa isas[] = {
#ifdef __x86_64__
    {"amx", works_amx, cpu_table_amx},
    {"avx512", works_avx512, cpu_table_avx512},
    {"avx2", works_avx2, cpu_table_avx2},
#endif
    {"plain", works_plain, cpu_table_plain},
};

#define ISAS (sizeof isas / sizeof isas[0])

int ops_cpu_table(const char *isa, Ops *ops)
{
    for (size_t i = 0; i < ISAS; i++)
        if (strcmp(isas[i].name, isa) == 0 && isas[i].works()) {
            isas[i].table(ops);
            return 1;
        }
    return 0;
}

const Ops *ops_cpu(void)
{
    static Ops table;
    const char *wanted = getenv("ASSAY_CPU");

    if (table.name)
        return &table;
    if (wanted && ops_cpu_table(wanted, &table))
        return &table;
    for (size_t i = 0; !table.name; i++)
        if (isas[i].works())
            isas[i].table(&table);
    return &table;
}
