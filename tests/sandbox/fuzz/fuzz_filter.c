/*
 * The filter against its own table: for any call, what the BPF says is what reading the rows of
 * syscalls.def one by one says.
 */
#include "tests/sandbox/fuzz/fuzz.h"

#include "sandbox/filter.h"
#include "tests/sandbox/bpf_sim.h"

#include <errno.h>
#include <linux/audit.h>
#include <seccomp.h>
#include <string.h>

#ifdef __x86_64__
#define NATIVE AUDIT_ARCH_X86_64
#else
#define NATIVE AUDIT_ARCH_AARCH64
#endif
#define X32_BIT 0x40000000u

typedef struct Row {
    const char *name;
    int err;
    guint n; /* comparisons; 0: holds always */
    struct {
        guint arg;
        guint32 mask, value;
    } compare[2];
    gboolean bare_only, by_name;
} Row;

/* clang-format off */
static const Row rows[] = {
#define ALLOW(name, why)                       {#name, 0, 0, {{0}}, FALSE, TRUE},
#define REFUSE(name, err, why)                 {#name, err, 0, {{0}}, FALSE, TRUE},
#define WHEN(name, err, a, m, v, why)          {#name, err, 1, {{a, m, v}}, FALSE, FALSE},
#define WHEN_BARE(name, err, a, m, v, why)     {#name, err, 1, {{a, m, v}}, TRUE, FALSE},
#define WHEN2(name, err, a, m, v, b, n, w, why) {#name, err, 2, {{a, m, v}, {b, n, w}}, FALSE, FALSE},
#define OTHERWISE(name, err, why)              {#name, err, 0, {{0}}, FALSE, FALSE},
#define OTHERWISE_BARE(name, err, why)         {#name, err, 0, {{0}}, TRUE, FALSE},
#include "sandbox/syscalls.def"
};
/* clang-format on */

static int numbers[G_N_ELEMENTS(rows)]; /* of the rows' names; negative: not on this machine */

static gboolean holds(const Row *row, const struct seccomp_data *data)
{
    for (guint i = 0; i < row->n; i++)
        if (((guint32)data->args[row->compare[i].arg] & row->compare[i].mask) !=
            row->compare[i].value)
            return FALSE;
    return TRUE;
}

/* The rows with arguments come first; one that allows leaves the word to the name. */
static guint32 expected(FilterKind kind, const struct seccomp_data *data)
{
    if (data->arch != NATIVE)
        return SECCOMP_RET_KILL_PROCESS;
    if (data->nr < 0)
        return SECCOMP_RET_ERRNO | ENOSYS;
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        const Row *row = &rows[i];
        if (row->by_name || numbers[i] != data->nr || (row->bare_only && kind != FILTER_BARE) ||
            !holds(row, data))
            continue;
        if (row->err != 0)
            return SECCOMP_RET_ERRNO | (guint32)row->err;
        break;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].by_name && numbers[i] == data->nr)
            return rows[i].err == 0 ? SECCOMP_RET_ALLOW : SECCOMP_RET_ERRNO | (guint32)rows[i].err;
    return SECCOMP_RET_ERRNO | ENOSYS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static gboolean known;
    for (gsize i = 0; !known && i < G_N_ELEMENTS(rows); i++)
        numbers[i] = seccomp_syscall_resolve_name(rows[i].name);
    known = TRUE;
    struct seccomp_data call = {0};
    memcpy(&call, data, MIN(size, sizeof call));
    for (FilterKind kind = FILTER_BOX; kind <= FILTER_BARE; kind++) {
        guint32 got = bpf_sim(filter_build(kind, NULL), &call);
        guint32 want = expected(kind, &call);
        if (call.arch == NATIVE && (guint32)call.nr >= X32_BIT)
            g_assert_cmpuint(got, !=, SECCOMP_RET_ALLOW); /* killed, or unknown */
        else
            g_assert_cmphex(got, ==, want);
    }
    return 0;
}

/* Every row, with the values it compares with. */
gboolean fuzz_seed(guint i, GByteArray *ret_bytes)
{
    if (i >= G_N_ELEMENTS(rows))
        return FALSE;
    struct seccomp_data call = {.nr = seccomp_syscall_resolve_name(rows[i].name), .arch = NATIVE};
    for (guint k = 0; k < rows[i].n; k++)
        call.args[rows[i].compare[k].arg] = rows[i].compare[k].value;
    g_byte_array_append(ret_bytes, (const guint8 *)&call, sizeof call);
    return TRUE;
}
