/*
 * FLOPs to generate L tokens from nothing: the paper's figure 1 and the exact count.
 *
 *     paper  F(L) = a L + b L^2
 *     exact  F(L) = token L + pair L (L + 1) / 2        causal: position t sees t + 1 keys
 *
 * Source: arXiv 2506.13585 figure 1 (right), its curves fitted to below 1e-6. The figure charges M1
 * for 72 lightning and 8 softmax layers (the checkpoint has 70 and 10), 2 * 8192^2 FLOPs per token
 * and lightning layer (instead of 64 products of 128 x 128), and heads (d_qk + 2 d_v) per pair.
 */
#pragma once

#include "policy/config.h"

typedef struct FlopsModel {
    const char *name;
    double paper_a, paper_b;
    double token, pair;
    double pair_absorbed; /* latent attention as decoded, on compressed keys; 0: has none */
} FlopsModel;

/* MiniMax-M1, DeepSeek-R1, Qwen3-235B-A22B; ended by a NULL name. */
extern const FlopsModel flops_models[];
const FlopsModel *flops_model(const char *name);

double flops_paper(const FlopsModel *model, double length);
double flops_exact(double token, double pair, double length);

/* The exact coefficients of any config: 2 per active parameter and of the head, 5 heads d^2 for a
 * lightning layer (k^T v, decay, sum, q S); 4 heads d for a pair and softmax layer. */
double flops_token(const ModelConfig *config);
double flops_pair(const ModelConfig *config);
