/*
 * Headers and indexes of safetensors, and config.json, as anybody may have written them.
 *
 * What must hold: nothing is read past the end; tensors that are accepted cover the data exactly,
 * aligned, under different names; a config that is accepted, written again, reads as the same.
 */
#include "policy/init.h"
#include "tests/sandbox/fuzz.h"

#include <string.h>

/* The first two bytes say how much data there is. */
static gboolean try_header(const guint8 *data, gsize len)
{
    if (len < 2)
        return FALSE;
    guint64 data_bytes = data[0] | (guint64)data[1] << 8, header = len - 2, at = 8 + header;
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GPtrArray) tensors =
        safetensors_parse_header((const char *)data + 2, header, at, data_bytes, NULL, NULL);
    for (guint i = 0; tensors != NULL && i < tensors->len; i++) {
        const SafeTensor *tensor = tensors->pdata[i];
        gsize size = tensor_dtype_bytes(tensor->dtype);
        guint64 count = 1;
        for (guint k = 0; k < tensor->rank; k++)
            count *= tensor->dims[k];
        g_assert_cmpuint(count, ==, tensor->count);
        g_assert_cmpuint(tensor->offset, ==, at);
        g_assert_cmpuint(tensor->offset % size, ==, 0);
        g_assert_true(g_hash_table_add(names, tensor->name));
        at += count * size;
    }
    g_assert_true(tensors == NULL || at == 8 + header + data_bytes);
    return tensors != NULL;
}

static void try_index(const guint8 *data, gsize len)
{
    g_autoptr(GHashTable) index = safetensors_parse_index((const char *)data, len, NULL);
    GHashTableIter iter;
    gpointer file;
    if (index == NULL)
        return;
    g_hash_table_iter_init(&iter, index);
    while (g_hash_table_iter_next(&iter, NULL, &file))
        g_assert_true(strchr(file, '/') == NULL && strcmp(file, "..") != 0);
}

static void try_config(const guint8 *data, gsize len)
{
    ModelConfig config, again;
    g_autoptr(GError) error = NULL;
    if (!model_config_parse((const char *)data, len, &config, &error)) {
        g_assert_nonnull(error);
        return;
    }
    g_autoptr(json_t) object = model_config_json(&config);
    g_autofree char *text = json_print(object);
    g_assert_true(model_config_parse(text, strlen(text), &again, NULL));
    g_assert_cmpmem(&config, sizeof config, &again, sizeof again);
    TensorInfo last = tensors_info(&config, tensors_count(&config) - 1);
    g_assert_cmpuint(last.slot, ==, SLOT_HEAD);
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    try_header(data, len);
    try_index(data, len);
    try_config(data, len);
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const char *const texts[] = {
        "\x22\x01{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,36],"
        "\"data_offsets\":[0,288]},\"b\":{\"dtype\":\"BF16\",\"shape\":[1],"
        "\"data_offsets\":[288,290]}}",
        "\x08\x01{\"x\":{\"dtype\":\"F64\",\"shape\":[33],\"data_offsets\":[0,264]},"
        "\"e\":{\"dtype\":\"F16\",\"shape\":[0,9],\"data_offsets\":[264,264]}}    ",
        "{\"metadata\":{\"total_size\":24},\"weight_map\":{\"a\":\"model-00000-of-00001."
        "safetensors\","
        "\"b\":\"x.safetensors\"}}",
    };
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_ptr_array_add(seeds, g_bytes_new_static(texts[i], strlen(texts[i])));
    for (gsize i = 0; i < 2; i++) /* good ones, or mutations would all end early */
        g_assert_true(try_header((const guint8 *)texts[i], strlen(texts[i])));
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    g_autoptr(json_t) object = model_config_json(&config);
    char *text = json_print(object);
    g_ptr_array_add(seeds, g_bytes_new_take(text, strlen(text)));
}
