/* The table of the ops that the bodies before it defined. A body without a guard. */

/* Every op is done when it returns. */
static void ref_nothing(void) {}

#define REF_TABLE(symbol, real_kind)                                                               \
    const Ops symbol = {                                                                           \
        .name = "ref",                                                                             \
        .real = real_kind,                                                                         \
        .begin = ref_nothing,                                                                      \
        .end = ref_nothing,                                                                        \
        .weight_bytes = ref_weight_bytes,                                                          \
        .weight_pack = ref_weight_pack,                                                            \
        .weight_unpack = ref_weight_unpack,                                                        \
        .embed_fwd = ref_embed_fwd,                                                                \
        .embed_bwd = ref_embed_bwd,                                                                \
        .rmsnorm_fwd = ref_rmsnorm_fwd,                                                            \
        .rmsnorm_bwd = ref_rmsnorm_bwd,                                                            \
        .axpby = ref_axpby,                                                                        \
        .gemm_fwd = ref_gemm_fwd,                                                                  \
        .gemm_dx = ref_gemm_dx,                                                                    \
        .gemm_dw = ref_gemm_dw,                                                                    \
        .silu_fwd = ref_silu_fwd,                                                                  \
        .silu_bwd = ref_silu_bwd,                                                                  \
        .gatenorm_fwd = ref_gatenorm_fwd,                                                          \
        .gatenorm_bwd = ref_gatenorm_bwd,                                                          \
        .rope = ref_rope,                                                                          \
        .attn_fwd = ref_attn_fwd,                                                                  \
        .attn_bwd = ref_attn_bwd,                                                                  \
        .lightning_fwd = ref_lightning_fwd,                                                        \
        .lightning_bwd = ref_lightning_bwd,                                                        \
        .route_fwd = ref_route_fwd,                                                                \
        .route_bwd = ref_route_bwd,                                                                \
        .route_plan = moe_plan,                                                                    \
        .route_balance_bwd = ref_route_balance_bwd,                                                \
        .moe_up_fwd = ref_moe_up_fwd,                                                              \
        .moe_down_fwd = ref_moe_down_fwd,                                                          \
        .moe_bwd = ref_moe_bwd,                                                                    \
        .logprob_fwd = ref_logprob_fwd,                                                            \
        .head_fwd = ref_head_fwd,                                                                  \
        .head_bwd = ref_head_bwd,                                                                  \
        .adamw = ref_adamw,                                                                        \
        .sumsq = ref_sumsq,                                                                        \
    }
