/*
 * Random models.
 *
 * Invariants:
 *   1. A value depends on seed, tensor number and element number alone.
 *   2. Drawn in double, rounded once to the type asked for: a BF16 model is the rounded F64 one.
 *
 * Not here: random choice of tokens while sampling.
 */
#include "policy/init.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define EMBED_STD  0.02 /* initializer_range of the published config */
#define PIECE      1024u
#define CONTEXT_M1 10240000u
#define THETA_M1   1e7

#define PHILOX_M0     0xD2511F53u
#define PHILOX_M1     0xCD9E8D57u
#define PHILOX_W0     0x9E3779B9u
#define PHILOX_W1     0xBB67AE85u
#define PHILOX_ROUNDS 10

typedef struct Preset {
    const char *name;
    guint32 layers, hidden, heads, head_dim, kv_heads, rotary_dim, experts, ffn, vocab;
    double rope_theta;
} Preset;

/* Every eighth layer is softmax, two experts per token. */
static const Preset presets[] = {
    {"tiny", 8, 16, 4, 8, 2, 4, 4, 12, 29, 1e4},
    {"t14", 8, 128, 4, 32, 1, 16, 32, 128, 4096, THETA_M1},
    {"t57", 8, 256, 4, 64, 1, 32, 32, 256, 8192, THETA_M1},
    {"s2b", 16, 1024, 16, 64, 2, 32, 32, 1024, 32768, THETA_M1},
    {"m1", 80, 6144, 64, 128, 8, 64, 32, 9216, 200064, THETA_M1},
};
#define SOFTMAX_EVERY 8u

const char *const *init_presets(void)
{
    static const char *names[G_N_ELEMENTS(presets) + 1];
    for (guint i = 0; i < G_N_ELEMENTS(presets); i++)
        names[i] = presets[i].name;
    return names;
}

static gboolean fill_preset(const Preset *preset, ModelConfig *config, GError **error)
{
    double alpha = pow(2.0 * preset->layers, 0.25);
    *config = (ModelConfig){.hidden = preset->hidden,
                            .layers = preset->layers,
                            .heads = preset->heads,
                            .kv_heads = preset->kv_heads,
                            .head_dim = preset->head_dim,
                            .rotary_dim = preset->rotary_dim,
                            .experts = preset->experts,
                            .experts_per_token = 2,
                            .ffn = preset->ffn,
                            .vocab = preset->vocab,
                            .context_max = CONTEXT_M1,
                            .norm_eps = 1e-5,
                            .lightning_norm_eps = 1e-6,
                            .rope_theta = preset->rope_theta,
                            .alpha_linear = alpha,
                            .alpha_full = alpha,
                            .alpha_mlp = alpha,
                            .beta_linear = 1,
                            .beta_full = 1,
                            .beta_mlp = 1};
    for (guint32 l = 0; l < config->layers; l++)
        config->kinds[l] = (l + 1) % SOFTMAX_EVERY == 0 ? ATTENTION_SOFTMAX : ATTENTION_LIGHTNING;
    return model_config_check(config, error);
}

gboolean init_preset(const char *name, ModelConfig *config, GError **error)
{
    for (guint i = 0; i < G_N_ELEMENTS(presets); i++)
        if (strcmp(presets[i].name, name) == 0)
            return fill_preset(&presets[i], config, error);
    g_autofree char *known = g_strjoinv(", ", (GStrv)(gsize)init_presets());
    return error_set(error, ASSAY_ERROR_NOT_FOUND, "there is no preset %s; presets: %s", name,
                     known);
}

void philox4x32(const guint32 counter[4], const guint32 key[2], guint32 out[4])
{
    guint32 c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    guint32 k0 = key[0], k1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        guint64 p0 = (guint64)PHILOX_M0 * c0, p1 = (guint64)PHILOX_M1 * c2;
        guint32 n0 = (guint32)(p1 >> 32) ^ c1 ^ k0, n2 = (guint32)(p0 >> 32) ^ c3 ^ k1;
        c1 = (guint32)p1;
        c3 = (guint32)p0;
        c0 = n0;
        c2 = n2;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Four standard normals of one counter, by Box and Muller. */
static void draw_normals(guint64 seed, guint tensor, guint64 block, double out[4])
{
    const guint32 key[2] = {(guint32)seed, (guint32)(seed >> 32)};
    const guint32 counter[4] = {(guint32)block, (guint32)(block >> 32), tensor, 0};
    guint32 words[4];
    philox4x32(counter, key, words);
    for (int i = 0; i < 4; i += 2) {
        double radius = sqrt(-2 * log((words[i] + 0.5) / 4294967296.0)); /* of (0, 1): finite */
        double angle = 2 * G_PI * (words[i + 1] / 4294967296.0);
        out[i] = radius * cos(angle);
        out[i + 1] = radius * sin(angle);
    }
}

static double xavier_std(guint64 in, guint64 out)
{
    return sqrt(2.0 / (double)(in + out));
}

/* The standard deviation of one row; 0: the row is zero. */
static double row_std(const ModelConfig *config, const TensorInfo *info, guint64 row)
{
    double gain = pow(8.0 * config->layers, -0.25);
    double std = xavier_std(info->dims[1], info->dims[0]);
    switch (info->init) {
    case INIT_EMBED:
        return row < config->vocab_valid ? EMBED_STD : 0;
    case INIT_HEAD:
        return row < config->vocab_valid ? std : 0;
    case INIT_QKV: /* per head d rows of q, d of k, d of v */
        std = xavier_std(info->dims[1], config->attn_dim);
        return row % (3 * config->head_dim) < 2 * config->head_dim ? std : std * gain;
    case INIT_GAIN:
        return std * gain;
    case INIT_XAVIER:
    case INIT_ONES:
    default:
        return std;
    }
}

void init_values(const ModelConfig *config, guint64 seed, guint index, guint64 first, guint64 count,
                 double *out)
{
    TensorInfo info = tensors_info(config, index);
    g_assert(first + count <= info.count);
    double normals[4], std = 0;
    guint64 block = G_MAXUINT64, row = G_MAXUINT64;
    for (guint64 i = 0; i < count; i++) {
        guint64 j = first + i;
        if (info.init == INIT_ONES) {
            out[i] = 1;
            continue;
        }
        if (j / 4 != block) {
            block = j / 4;
            draw_normals(seed, index, block, normals);
        }
        if (j / info.dims[1] != row) {
            row = j / info.dims[1];
            std = row_std(config, &info, row);
        }
        out[i] = std * normals[j % 4] + 0.0; /* + 0: a zero row has no negative zeros */
    }
}

/* The same, in another type. */
static void draw(const ModelConfig *config, guint64 seed, guint index, guint64 first, guint64 count,
                 gpointer out, TensorDtype dtype)
{
    double piece[PIECE];
    for (guint64 done = 0; done < count; done += PIECE) {
        guint64 n = MIN(count - done, PIECE);
        init_values(config, seed, index, first + done, n, piece);
        weights_convert((guint8 *)out + done * tensor_dtype_bytes(dtype), dtype, piece, TENSOR_F64,
                        n);
    }
}

Weights *init_weights(const ModelConfig *config, guint64 seed, TensorDtype dtype, GError **error)
{
    Weights *weights = weights_new(config, dtype, error);
    for (guint i = 0; weights != NULL && i < tensors_count(config); i++)
        draw(config, seed, i, 0, tensors_info(config, i).count, weights_at(weights, i), dtype);
    return weights;
}

typedef struct Init {
    const ModelConfig *config;
    guint64 seed;
    const SafeTensor *plan;
} Init;

static void fill_piece(guint i, guint64 first, guint64 count, gpointer out, gpointer user_data)
{
    const Init *init = user_data;
    draw(init->config, init->seed, i, first, count, out, init->plan[i].dtype);
}

gboolean init_checkpoint(const ModelConfig *config, guint64 seed, TensorDtype dtype,
                         guint64 shard_bytes_max, const char *dir, GError **error)
{
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, seed);
    const char *const metadata[] = {"seed", text, NULL};
    g_autoptr(GArray) plan = tensors_plan(config, dtype);
    Init init = {config, seed, (const SafeTensor *)(gpointer)plan->data};
    return safetensors_write(dir, init.plan, plan->len, shard_bytes_max, metadata, fill_piece,
                             &init, error) &&
           model_config_write(config, dir, error);
}
