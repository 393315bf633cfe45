/*
 * The op table of one CPU build.
 *
 * Invariants
 *  1. An entry that touches packed weights is this build's own: the packing is.
 *  2. Routing, RoPE and the embedding's gradient are the oracle's: plain rows, few numbers.
 */
#include "kernels/cpu/tables.h"
#include "kernels/cpu/train.h"

#include <string.h>

#define TEXT2(x) #x
#define TEXT(x)  TEXT2(x)

void CPU(table)(Ops *ops)
{
    *ops = ops_ref_f32;
    ops->name = "cpu-" TEXT(CPU_ISA);
    ops->weight_bytes = CPU(weight_bytes);
    ops->weight_pack = CPU(weight_pack);
    ops->weight_unpack = CPU(weight_unpack);
    ops->embed_fwd = CPU(embed_fwd);
    ops->rmsnorm_fwd = CPU(rmsnorm_fwd);
    ops->rmsnorm_bwd = CPU(rmsnorm_bwd);
    ops->axpby = CPU(axpby);
    ops->gemm_fwd = CPU(gemm_fwd);
    ops->gemm_dx = CPU(gemm_dx);
    ops->gemm_dw = CPU(gemm_dw);
    ops->silu_fwd = CPU(silu_fwd);
    ops->silu_bwd = CPU(silu_bwd);
    ops->gatenorm_fwd = CPU(gatenorm_fwd);
    ops->gatenorm_bwd = CPU(gatenorm_bwd);
    ops->attn_fwd = CPU(attn_fwd);
    ops->attn_bwd = CPU(attn_bwd);
    ops->lightning_fwd = CPU(lightning_fwd);
    ops->lightning_bwd = CPU(lightning_bwd);
    ops->moe_up_fwd = CPU(moe_up_fwd);
    ops->moe_down_fwd = CPU(moe_down_fwd);
    ops->moe_bwd = CPU(moe_bwd);
    ops->logprob_fwd = CPU(logprob_fwd);
    ops->head_fwd = CPU(head_fwd);
    ops->head_bwd = CPU(head_bwd);
    ops->adamw = CPU(adamw);
    ops->sumsq = CPU(sumsq);
    ops->ceiling_flops = CPU(ceiling_flops);
    ops->ceiling_read = CPU(ceiling_read);
}
