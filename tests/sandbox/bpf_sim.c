/*
 * Classic BPF, the instructions that seccomp allows and libseccomp emits.
 *
 * Reference: Linux, Documentation/userspace-api/seccomp_filter.rst and networking/filter.rst.
 */
#include "tests/sandbox/bpf_sim.h"

#include <linux/filter.h>
#include <string.h>

static gboolean jump_taken(guint16 code, guint32 a, guint32 k)
{
    switch (code) {
    case BPF_JMP | BPF_JEQ | BPF_K:
        return a == k;
    case BPF_JMP | BPF_JGT | BPF_K:
        return a > k;
    case BPF_JMP | BPF_JGE | BPF_K:
        return a >= k;
    case BPF_JMP | BPF_JSET | BPF_K:
        return (a & k) != 0;
    default:
        g_error("unknown BPF instruction %#x", code);
    }
}

guint32 bpf_sim(GBytes *program, const struct seccomp_data *data)
{
    gsize len = 0;
    const struct sock_filter *code = g_bytes_get_data(program, &len);
    guint32 a = 0;
    len /= sizeof *code;
    for (gsize pc = 0;; pc++) {
        g_assert_cmpuint(pc, <, len);
        const struct sock_filter *insn = &code[pc];
        switch (insn->code) {
        case BPF_LD | BPF_W | BPF_ABS:
            g_assert_cmpuint(insn->k + sizeof a, <=, sizeof *data);
            memcpy(&a, (const char *)data + insn->k, sizeof a);
            break;
        case BPF_ALU | BPF_AND | BPF_K:
            a &= insn->k;
            break;
        case BPF_JMP | BPF_JA:
            pc += insn->k;
            break;
        case BPF_RET | BPF_K:
            return insn->k;
        default:
            pc += jump_taken(insn->code, a, insn->k) ? insn->jt : insn->jf;
        }
    }
}
