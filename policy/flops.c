/*
 * FLOPs against length, for the three models of the paper's figure and for any config.
 */
#include "policy/flops.h"

#include "policy/tensors.h"

#include <string.h>

/* clang-format off */
#define M1_LIGHTNING (24576.0 * 6144 + 2.0 * 8192 * 6144) /* matrices of one layer */
#define M1_SOFTMAX   (2.0 * 8192 * 6144 + 2.0 * 1024 * 6144)
#define M1_EXPERTS   (2.0 * 3 * 6144 * 9216)
#define M1_ROUTER    (32.0 * 6144)
#define M1_HEAD      (200064.0 * 6144)

#define R1_MLA     187105280.0
#define R1_EXPERTS (9.0 * 3 * 7168 * 2048) /* 8 and the shared one */
#define R1_DENSE   (3.0 * 7168 * 18432)
#define R1_ROUTER  (256.0 * 7168)
#define R1_HEAD    (129280.0 * 7168)

#define Q3_ATTENTION (2.0 * 8192 * 4096 + 2.0 * 512 * 4096)
#define Q3_EXPERTS   (8.0 * 3 * 4096 * 1536)
#define Q3_ROUTER    (128.0 * 4096)
#define Q3_HEAD      (151936.0 * 4096)

const FlopsModel flops_models[] = {
    {"MiniMax-M1",
     2 * (72 * M1_LIGHTNING + 8 * M1_SOFTMAX + 80 * M1_EXPERTS + M1_HEAD) + 72 * 2.0 * 8192 * 8192,
     8.0 * 64 * (128 + 2 * 128),
     2 * (70 * M1_LIGHTNING + 10 * M1_SOFTMAX + 80 * (M1_EXPERTS + M1_ROUTER) + M1_HEAD) + 70.0 * 5 * 64 * 128 * 128,
     10.0 * 4 * 64 * 128, 0},
    {"DeepSeek-R1",
     2 * (61 * R1_MLA + 64 * R1_EXPERTS + R1_HEAD),
     61.0 * 128 * (192 + 128 + 128),
     2 * (61 * R1_MLA + 3 * R1_DENSE + 58 * (R1_EXPERTS + R1_ROUTER) + R1_HEAD),
     61.0 * 2 * 128 * (192 + 128), 61.0 * 2 * 128 * (576 + 512)},
    {"Qwen3-235B-A22B",
     2 * (94 * (Q3_ATTENTION + Q3_EXPERTS) + Q3_HEAD),
     94.0 * 64 * (128 + 2 * 128),
     2 * (94 * (Q3_ATTENTION + Q3_EXPERTS + Q3_ROUTER) + Q3_HEAD),
     94.0 * 4 * 64 * 128, 0},
    {NULL, 0, 0, 0, 0, 0},
};
/* clang-format on */

const FlopsModel *flops_model(const char *name)
{
    for (const FlopsModel *model = flops_models; model->name != NULL; model++)
        if (strcmp(model->name, name) == 0)
            return model;
    return NULL;
}

double flops_paper(const FlopsModel *model, double length)
{
    return model->paper_a * length + model->paper_b * length * length;
}

double flops_exact(double token, double pair, double length)
{
    return token * length + pair * length * (length + 1) / 2;
}

double flops_token(const ModelConfig *config)
{
    double head = (double)tensors_params_class(config, CLASS_HEAD);
    double state = 5.0 * config->attn_dim * config->head_dim;
    return 2 * ((double)tensors_params_active(config) + head) + config->lightning_layers * state;
}

double flops_pair(const ModelConfig *config)
{
    return 4.0 * config->softmax_layers * config->attn_dim;
}
