/*
 * The filter as the host would run it (bpf_sim.c), against the rules as they are written down.
 *
 * What must hold, for any call with any arguments: the program decides as the rows of syscalls.def
 * read from the top; a foreign table is killed; what has no row is ENOSYS.
 */
#include "sandbox/filter.h"
#include "tests/sandbox/bpf_sim.h"
#include "tests/sandbox/fuzz.h"

#include <errno.h>
#include <linux/audit.h>
#include <seccomp.h>
#include <string.h>

#ifdef __x86_64__
#define NATIVE AUDIT_ARCH_X86_64
#define NR_MAX 0x3fffffffu /* from here on it is the x32 table */
#else
#define NATIVE AUDIT_ARCH_AARCH64
#define NR_MAX G_MAXUINT32
#endif
#define REFUSED(err) (SECCOMP_RET_ERRNO | (guint32)(err))

typedef struct Test {
    int arg;
    guint32 mask, value;
} Test;

typedef enum Only { IN_BOTH, IN_BOX, IN_BARE } Only;

typedef struct Row {
    const char *name;
    int err, n_tests; /* n_tests < 0: a row without arguments */
    Test tests[2];
    Only only;
    int nr;
} Row;

/* clang-format off */
static Row rows[] = {
#define ALLOW(name, why)                            {#name, 0, -1, {{0, 0, 0}}, IN_BOTH, 0},
#define REFUSE(name, err, why)                      {#name, err, -1, {{0, 0, 0}}, IN_BOTH, 0},
#define WHEN(name, err, arg, mask, value, why)      {#name, err, 1, {{arg, mask, value}}, IN_BOTH, 0},
#define WHEN_BOX(name, err, arg, mask, value, why)  {#name, err, 1, {{arg, mask, value}}, IN_BOX, 0},
#define WHEN_BARE(name, err, arg, mask, value, why) {#name, err, 1, {{arg, mask, value}}, IN_BARE, 0},
#define WHEN2(name, err, a, m, v, b, n, w, why)     {#name, err, 2, {{a, m, v}, {b, n, w}}, IN_BOTH, 0},
#define OTHERWISE(name, err, why)                   {#name, err, 0, {{0, 0, 0}}, IN_BOTH, 0},
#define OTHERWISE_BARE(name, err, why)              {#name, err, 0, {{0, 0, 0}}, IN_BARE, 0},
#include "sandbox/syscalls.def"
};
/* clang-format on */

static void resolve(void)
{
    static gsize once;
    if (!g_once_init_enter(&once))
        return;
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        rows[i].nr = seccomp_syscall_resolve_name(rows[i].name);
    g_once_init_leave(&once, 1);
}

static gboolean holds(const Row *row, const struct seccomp_data *data)
{
    for (int i = 0; i < row->n_tests; i++)
        if (((guint32)data->args[row->tests[i].arg] & row->tests[i].mask) != row->tests[i].value)
            return FALSE;
    return TRUE;
}

static guint32 decided(int err)
{
    return err == 0 ? SECCOMP_RET_ALLOW : REFUSED(err);
}

/* What the rows say, read as their heading tells. */
static guint32 read_rows(FilterKind kind, const struct seccomp_data *data)
{
    guint32 plain = REFUSED(ENOSYS);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        const Row *row = &rows[i];
        if (row->nr < 0 || row->nr != data->nr)
            continue;
        if (row->n_tests < 0)
            plain = decided(row->err);
        else if (row->only != (kind == FILTER_BOX ? IN_BARE : IN_BOX) && holds(row, data))
            return decided(row->err);
    }
    return plain;
}

int LLVMFuzzerTestOneInput(const guint8 *bytes, gsize len)
{
    static const FilterKind kinds[] = {FILTER_BOX, FILTER_BARE};
    struct seccomp_data data = {0};
    memcpy(&data, bytes, MIN(len, sizeof data));
    resolve();
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
        guint32 got = bpf_sim(filter_build(kinds[i], NULL), &data);
        gboolean is_foreign = data.arch != NATIVE || (guint32)data.nr > NR_MAX;
        if (is_foreign && data.nr >= 0)
            g_assert_cmphex(got, ==, SECCOMP_RET_KILL_PROCESS);
        else if (is_foreign)
            g_assert_cmphex(got, !=, SECCOMP_RET_ALLOW);
        else
            g_assert_cmphex(got, ==, read_rows(kinds[i], &data));
    }
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    resolve();
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        struct seccomp_data data = {.nr = rows[i].nr, .arch = NATIVE};
        for (int k = 0; k < rows[i].n_tests; k++)
            data.args[rows[i].tests[k].arg] = 1ull << 32 | rows[i].tests[k].value;
        if (rows[i].nr >= 0)
            g_ptr_array_add(seeds, g_bytes_new(&data, sizeof data));
    }
}
