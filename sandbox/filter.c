/*
 * From rules to BPF: names through libseccomp, arguments by a short program in front of it.
 *
 * libseccomp cannot say "this name with these arguments, else that errno" (a rule that does not
 * match falls to the default action, and one argument may be compared once per rule). So the rows
 * with arguments become a prefix, which either returns an errno or falls through to what libseccomp
 * made of the names; BPF jumps are relative, so the two are simply concatenated.
 *
 * Invariants:
 *   1. Every rule is a row of syscalls.def; this file knows no syscall.
 *   2. The prefix never allows: only libseccomp's part does.
 *   3. Integer arguments are compared by their low 32 bits.
 *   4. A foreign architecture (int 0x80, x32) is killed; nothing else ever is.
 *
 * Not here: loading (keeper_payload.c), the list and its reasons (syscalls.def).
 */
#include "sandbox/filter.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/spec.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/mman.h>

typedef struct NameRule {
    const char *name;
    int err; /* 0: allowed */
} NameRule;

typedef struct Compare {
    guint32 arg, mask, value;
} Compare;

typedef enum ArgOnly {
    ONLY_ANY = 0,
    ONLY_BOX = 1,
    ONLY_BARE = 2,
} ArgOnly;

typedef struct ArgRule {
    const char *name;
    int err;
    guint n_compare; /* 0: holds always */
    Compare compare[2];
    ArgOnly only;
} ArgRule;

/* clang-format off */
static const NameRule name_rules[] = {
#define ALLOW(name, why)       {#name, 0},
#define REFUSE(name, err, why) {#name, err},
#define WHEN(...)
#define WHEN2(...)
#define WHEN_BOX(...)
#define WHEN_BARE(...)
#define OTHERWISE(...)
#define OTHERWISE_BARE(...)
#include "sandbox/syscalls.def"
#undef ALLOW
#undef REFUSE
#undef WHEN
#undef WHEN2
#undef WHEN_BOX
#undef WHEN_BARE
#undef OTHERWISE_BARE
#undef OTHERWISE
};

static const ArgRule arg_rules[] = {
#define ALLOW(...)
#define REFUSE(...)
#define WHEN(name, err, arg, mask, value, why)      {#name, err, 1, {{arg, mask, value}}, ONLY_ANY},
#define WHEN_BOX(name, err, arg, mask, value, why)  {#name, err, 1, {{arg, mask, value}}, ONLY_BOX},
#define WHEN_BARE(name, err, arg, mask, value, why) {#name, err, 1, {{arg, mask, value}}, ONLY_BARE},
#define WHEN2(name, err, a, m, v, b, n, w, why)     {#name, err, 2, {{a, m, v}, {b, n, w}}, ONLY_ANY},
#define OTHERWISE(name, err, why)                   {#name, err, 0, {{0, 0, 0}}, ONLY_ANY},
#define OTHERWISE_BARE(name, err, why)              {#name, err, 0, {{0, 0, 0}}, ONLY_BARE},
#include "sandbox/syscalls.def"
#undef ALLOW
#undef REFUSE
#undef WHEN
#undef WHEN2
#undef WHEN_BOX
#undef WHEN_BARE
#undef OTHERWISE_BARE
#undef OTHERWISE
};
/* clang-format on */

static guint32 native_audit_arch(void)
{
#if defined(__x86_64__)
    return AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    return AUDIT_ARCH_AARCH64;
#else
#error "no filter for this architecture yet: add its AUDIT_ARCH here"
#endif
}

static void emit(GArray *code, guint16 op, guint8 jt, guint8 jf, guint32 k)
{
    struct sock_filter insn = {op, jt, jf, k};
    g_array_append_val(code, insn);
}

/* Low half of an argument; both supported architectures are little-endian. */
static guint32 arg_offset(guint32 arg)
{
    return (guint32)(offsetof(struct seccomp_data, args) + arg * sizeof(__u64));
}

#define NOTHING G_MAXUINT32

/* One row: compares jump past the row's return when they fail. `*held` is the argument whose whole
 * low half is loaded already, so that rows about the same one load it once. */
static void emit_row(GArray *code, const ArgRule *rule, guint32 *held)
{
    g_autoptr(GArray) row = g_array_new(FALSE, FALSE, sizeof(struct sock_filter));
    for (guint i = 0; i < rule->n_compare; i++) {
        const Compare *compare = &rule->compare[i];
        gboolean whole = compare->mask == G_MAXUINT32;
        if (*held != compare->arg)
            emit(row, BPF_LD | BPF_W | BPF_ABS, 0, 0, arg_offset(compare->arg));
        if (!whole)
            emit(row, BPF_ALU | BPF_AND | BPF_K, 0, 0, compare->mask);
        emit(row, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, compare->value);
        *held = whole && rule->n_compare == 1 ? compare->arg : NOTHING;
    }
    for (guint i = 0; i < row->len; i++) { /* a miss goes past the rest and the return */
        struct sock_filter *insn = &g_array_index(row, struct sock_filter, i);
        if (insn->code == (BPF_JMP | BPF_JEQ | BPF_K))
            insn->jf = (guint8)(row->len - i);
    }
    g_array_append_vals(code, row->data, row->len);
}

/* All rows of one name; ends in an errno or falls through with the number loaded again. */
static void emit_name(GArray *code, const char *name, FilterKind kind, int nr)
{
    g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(struct sock_filter));
    g_autoptr(GArray) allowed_at = g_array_new(FALSE, FALSE, sizeof(guint));
    guint32 held = NOTHING;
    for (gsize i = 0; i < G_N_ELEMENTS(arg_rules); i++) {
        const ArgRule *rule = &arg_rules[i];
        if (!g_str_equal(rule->name, name) ||
            rule->only == (kind == FILTER_BARE ? ONLY_BOX : ONLY_BARE))
            continue;
        emit_row(rows, rule, &held);
        if (rule->err == 0) {
            g_array_append_val(allowed_at, rows->len);
            emit(rows, BPF_JMP | BPF_JA, 0, 0, 0); /* patched below */
        } else {
            emit(rows, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | (guint32)rule->err);
        }
    }
    for (guint i = 0; i < allowed_at->len; i++) {
        guint at = g_array_index(allowed_at, guint, i);
        g_array_index(rows, struct sock_filter, at).k = rows->len - at - 1;
    }
    emit(code, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, (guint32)nr);
    emit(code, BPF_JMP | BPF_JA, 0, 0, rows->len + 1);
    g_array_append_vals(code, rows->data, rows->len);
    emit(code, BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr));
}

static GArray *arg_prefix(FilterKind kind)
{
    g_autoptr(GArray) body = g_array_new(FALSE, FALSE, sizeof(struct sock_filter));
    for (gsize i = 0; i < G_N_ELEMENTS(arg_rules); i++) {
        if (i > 0 && g_str_equal(arg_rules[i].name, arg_rules[i - 1].name))
            continue; /* rows of one name stand together */
        int nr = seccomp_syscall_resolve_name(arg_rules[i].name);
        if (nr >= 0)
            emit_name(body, arg_rules[i].name, kind, nr);
    }
    GArray *code = g_array_new(FALSE, FALSE, sizeof(struct sock_filter));
    emit(code, BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, arch));
    emit(code, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, native_audit_arch());
    emit(code, BPF_JMP | BPF_JA, 0, 0, body->len + 1);
    emit(code, BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr));
    g_array_append_vals(code, body->data, body->len);
    return code;
}

static gboolean add_names(scmp_filter_ctx ctx, GError **error)
{
    int r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r == 0)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r < 0)
        return error_set_errno(error, -r, "seccomp: attributes");
    for (gsize i = 0; i < G_N_ELEMENTS(name_rules); i++) {
        const NameRule *rule = &name_rules[i];
        int nr = seccomp_syscall_resolve_name(rule->name);
        if (nr < 0 || rule->err == ENOSYS)
            continue; /* absent on this architecture, or what the default does anyway */
        guint32 action = rule->err == 0 ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO((guint32)rule->err);
        r = seccomp_rule_add(ctx, action, nr, 0);
        if (r < 0)
            return error_set_errno(error, -r, "seccomp: rule for %s", rule->name);
    }
    return TRUE;
}

static GBytes *names_program(scmp_filter_ctx ctx, GError **error)
{
    AUTO_FD fd = memfd_create("filter", MFD_CLOEXEC);
    if (fd < 0) {
        error_set_errno(error, errno, "memfd_create");
        return NULL;
    }
    int r = add_names(ctx, error) ? seccomp_export_bpf(ctx, fd) : 1;
    if (r < 0)
        error_set_errno(error, -r, "seccomp: export");
    if (r != 0 || lseek(fd, 0, SEEK_SET) < 0)
        return NULL;
    return fd_read_all(fd, SPEC_FILTER_MAX * sizeof(struct sock_filter), error);
}

static GBytes *build(FilterKind kind, GError **error)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (ctx == NULL) {
        error_set(error, ASSAY_ERROR_SYSTEM, "seccomp_init failed");
        return NULL;
    }
    g_autoptr(GBytes) names = names_program(ctx, error);
    seccomp_release(ctx);
    if (names == NULL)
        return NULL;

    g_autoptr(GArray) code = arg_prefix(kind);
    gsize len = 0;
    gconstpointer data = g_bytes_get_data(names, &len);
    g_array_append_vals(code, data, (guint)(len / sizeof(struct sock_filter)));
    g_assert(code->len <= SPEC_FILTER_MAX);
    return g_bytes_new(code->data, code->len * sizeof(struct sock_filter));
}

GBytes *filter_build(FilterKind kind, GError **error)
{
    static GBytes *built[2];
    if (built[kind] == NULL)
        built[kind] = build(kind, error);
    return built[kind];
}
