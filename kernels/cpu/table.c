/*
 * The op table of one CPU build.
 *
 * Invariants
 *  1. An entry that touches packed weights is this build's own: the packing is.
 *  2. The other backward entries, routing and RoPE are the oracle's: they see plain rows.
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
    ops->axpby = CPU(axpby);
    ops->gemm_fwd = CPU(gemm_fwd);
    ops->gemm_dx = CPU(gemm_dx);
    ops->gemm_dw = CPU(gemm_dw);
    ops->silu_fwd = CPU(silu_fwd);
    ops->gatenorm_fwd = CPU(gatenorm_fwd);
    ops->attn_fwd = CPU(attn_fwd);
    ops->lightning_fwd = CPU(lightning_fwd);
    ops->moe_up_fwd = CPU(moe_up_fwd);
    ops->moe_down_fwd = CPU(moe_down_fwd);
    ops->moe_bwd = CPU(moe_bwd);
    ops->logprob_fwd = CPU(logprob_fwd);
    ops->ceiling_flops = CPU(ceiling_flops);
    ops->ceiling_read = CPU(ceiling_read);
}
