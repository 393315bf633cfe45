/*
 * The op table of the CUDA backend, the one thing that libassay-cuda.so exports.
 *
 * Invariants
 *  1. Every entry is the card's: nothing falls back to the host.
 *
 * Not here: finding the library and the driver (kernels/cuda_load.c).
 */
#include "kernels/cuda/cuda.h"

#include "kernels/cuda/entry.h"

static Ops table(void)
{
    Ops ops = {};

    ops.name = "cuda";
    ops.real = OPS_F32;
    ops.memory_new = cuda_memory_new;
    ops.memory_free = cuda_memory_free;
    ops.begin = cuda_begin;
    ops.end = cuda_end;
    ops.weight_bytes = cuda_weight_bytes;
    ops.weight_pack = cuda_weight_pack;
    ops.weight_unpack = cuda_weight_unpack;
    ops.embed_fwd = cuda_embed_fwd;
    ops.embed_bwd = cuda_embed_bwd;
    ops.rmsnorm_fwd = cuda_rmsnorm_fwd;
    ops.rmsnorm_bwd = cuda_rmsnorm_bwd;
    ops.axpby = cuda_axpby;
    ops.gemm_fwd = cuda_gemm_fwd;
    ops.gemm_dx = cuda_gemm_dx;
    ops.gemm_dw = cuda_gemm_dw;
    ops.silu_fwd = cuda_silu_fwd;
    ops.silu_bwd = cuda_silu_bwd;
    ops.gatenorm_fwd = cuda_gatenorm_fwd;
    ops.gatenorm_bwd = cuda_gatenorm_bwd;
    ops.rope = cuda_rope;
    ops.attn_fwd = cuda_attn_fwd;
    ops.attn_bwd = cuda_attn_bwd;
    ops.lightning_fwd = cuda_lightning_fwd;
    ops.lightning_bwd = cuda_lightning_bwd;
    ops.route_fwd = cuda_route_fwd;
    ops.route_bwd = cuda_route_bwd;
    ops.route_plan = cuda_route_plan;
    ops.route_balance_bwd = cuda_route_balance_bwd;
    ops.moe_up_fwd = cuda_moe_up_fwd;
    ops.moe_down_fwd = cuda_moe_down_fwd;
    ops.moe_bwd = cuda_moe_bwd;
    ops.logprob_fwd = cuda_logprob_fwd;
    ops.head_fwd = cuda_head_fwd;
    ops.head_bwd = cuda_head_bwd;
    ops.adamw = cuda_adamw;
    ops.sumsq = cuda_sumsq;
    return ops;
}

/* The same with Hopper's kernels where there are any. */
static Ops table_hopper(void)
{
    Ops ops = table();

    ops.name = "cuda-sm90";
    ops.gemm_fwd = hopper_gemm_fwd;
    ops.moe_up_fwd = hopper_moe_up_fwd;
    ops.moe_down_fwd = hopper_moe_down_fwd;
    ops.lightning_fwd = hopper_lightning_fwd;
    ops.lightning_bwd = hopper_lightning_bwd;
    ops.attn_fwd = hopper_attn_fwd;
    ops.attn_bwd = hopper_attn_bwd;
    return ops;
}

/* Drivers of one major version run programs of all its minor versions. */
int cuda_needs(void)
{
    return CUDART_VERSION / 1000 * 1000;
}

const Ops *cuda_ops(void)
{
    static const Ops ops = table(), hopper = table_hopper();

    return cuda_hopper() ? &hopper : &ops;
}
