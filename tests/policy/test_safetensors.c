/*
 * Safetensors: hostile headers refused with their reason, what is written read back.
 */
#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "policy/safetensors.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define ONE "{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"

typedef struct Scratch {
    char *dir;
} Scratch;

static Scratch scratch_new(void)
{
    Scratch scratch = {g_dir_make_tmp("assay-st-XXXXXX", NULL)};
    g_assert_nonnull(scratch.dir);
    return scratch;
}

static void scratch_end(Scratch *scratch)
{
    g_assert_true(tree_remove(AT_FDCWD, scratch->dir, NULL));
    g_free(scratch->dir);
}
#define AUTO_SCRATCH __attribute__((cleanup(scratch_end))) Scratch

/* A file of a header and `data_bytes` zeros. `header_len` is what it claims. */
static char *put_file(const Scratch *scratch, const char *name, guint64 header_len,
                      const char *header, gsize data_bytes)
{
    char *path = g_build_filename(scratch->dir, name, NULL);
    g_autoptr(GByteArray) all = g_byte_array_new();
    g_autofree guint8 *zeros = g_malloc0(data_bytes + 1);
    guint64 len = GUINT64_TO_LE(header_len);
    g_byte_array_append(all, (const guint8 *)&len, sizeof len);
    g_byte_array_append(all, (const guint8 *)header, (guint)strlen(header));
    g_byte_array_append(all, zeros, (guint)data_bytes);
    g_assert_true(g_file_set_contents(path, (const char *)all->data, all->len, NULL));
    return path;
}

static char *put_padded(const Scratch *scratch, const char *name, const char *header, gsize data)
{
    g_autoptr(GString) padded = g_string_new(header);
    while (padded->len % 8 != 0)
        g_string_append_c(padded, ' ');
    return put_file(scratch, name, padded->len, padded->str, data);
}

static void expect_open_fails(const char *path, const char *says)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Safetensors) st = safetensors_open(path, &error);
    g_assert_null(st);
    g_assert_nonnull(error);
    if (strstr(error->message, says) == NULL)
        g_error("'%s' does not say '%s'", error->message, says);
    g_assert_nonnull(strstr(error->message, path)); /* which file */
}

static void lying_headers_are_refused_with_their_reason(void)
{
    static const struct {
        const char *header;
        gsize data_bytes;
        const char *says;
    } rows[] = {
        {"{\"a\":" ONE "}", 23, "data_offsets: 0..24 is outside the 23 bytes"},
        {"{\"a\":" ONE "}", 25, "1 bytes behind the last tensor"},
        {"{\"a\":" ONE ",\"b\":" ONE "}", 24, "tensor b: overlaps"},
        {"{\"a\":" ONE ",\"a\":" ONE "}", 24, "duplicate"},
        {"{\"a\":" ONE ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[28,32]}}", 32,
         "tensor b: leaves a hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "leaves a hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,20]}}", 20,
         "20 bytes, but shape and dtype need 24"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,0]}}", 24, "24..0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,24]}}",
         24, "product overflows"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
         "bytes overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1099511627776],\"data_offsets\":[0,4398046511104]}}",
         8, "outside the 8 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", 4,
         "too big"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "0 to 8 integers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "must be a list"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "must be a list"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "must be a list"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets: must be a list"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype F31"},
        {"{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype f32"},
        {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "dtype: must be a string"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"extra\":1}}", 4,
         "field extra: unknown"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[1]],\"data_offsets\":[0,4]}}", 4, "deeper than 3"},
        {"{\"a\":7}", 4, "must be an object"},
        {"{\"\":" ONE "}", 24, "name has 0 bytes"},
        {"{\"\\u0000\":" ONE "}", 24, "\\u0000"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__: a: must be a string"},
        {"{\"__metadata__\":[]}", 0, "__metadata__: must be an object"},
        {"[]", 0, "must be an object"},
        {"", 0, "line 1"},
        {"{\"a\":" ONE "}}", 24, "end of file"},
    };
    AUTO_SCRATCH scratch = scratch_new();
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *path =
            put_padded(&scratch, "x.safetensors", rows[i].header, rows[i].data_bytes);
        expect_open_fails(path, rows[i].says);
    }
}

static void a_header_length_that_lies_is_refused_before_it_is_used(void)
{
    static const guint64 lens[] = {25,         1000,       100u << 20,      (100u << 20) + 1,
                                   1ull << 40, G_MAXINT64, G_MAXUINT64 - 7, G_MAXUINT64};
    AUTO_SCRATCH scratch = scratch_new();
    for (gsize i = 0; i < G_N_ELEMENTS(lens); i++) {
        g_autofree char *path =
            put_file(&scratch, "x.safetensors", lens[i], "{\"a\":1}                 ", 0);
        expect_open_fails(path, "more than the file holds");
    }
    g_autofree char *seven = g_build_filename(scratch.dir, "seven.safetensors", NULL);
    g_assert_true(g_file_set_contents(seven, "1234567", 7, NULL));
    expect_open_fails(seven, "7 bytes hold no header");
}

static void a_misaligned_tensor_is_refused(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    const char *header = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}";
    g_autofree char *path = put_padded(&scratch, "x.safetensors", header, 6);
    expect_open_fails(path, "tensor b: data_offsets: byte");
    const char *unpadded = "{\"a\":" ONE "}";
    g_assert_cmpuint(strlen(unpadded) % 4, !=, 0);
    g_autofree char *odd = put_file(&scratch, "y.safetensors", strlen(unpadded), unpadded, 24);
    expect_open_fails(odd, "is not aligned to F32");
}

static void deep_and_wide_json_costs_nothing(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_autoptr(GString) deep = g_string_new("{\"a\":");
    for (int i = 0; i < 1000000; i++)
        g_string_append_c(deep, '[');
    g_autofree char *path = put_padded(&scratch, "x.safetensors", deep->str, 0);
    expect_open_fails(path, "nested deeper than 3");
    g_autoptr(GString) wide = g_string_new("{\"a\":[1");
    for (int i = 0; i < 70000; i++)
        g_string_append(wide, ",1");
    g_string_append(wide, "]}");
    g_autofree char *other = put_padded(&scratch, "y.safetensors", wide->str, 0);
    expect_open_fails(other, "more than 65536 members in a row");
    g_autoptr(GString) many = g_string_new("{\"a\":[1]");
    for (int i = 0; i < 62000; i++)
        g_string_append_printf(many, ",\"a%d\":[1,1,1,1,1,1,1,1,1,1,1,1]", i);
    g_string_append_c(many, '}');
    g_autofree char *third = put_padded(&scratch, "z.safetensors", many->str, 0);
    expect_open_fails(third, "values, more than 786432");
}

static void good_files_of_any_shape_are_read(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"scalar\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[24,32]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[24,24]},"
        "\"a\":" ONE ",\"h\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[32,34]}}";
    g_autofree char *path = put_padded(&scratch, "x.safetensors", header, 34);
    g_autoptr(GError) error = NULL;
    g_autoptr(Safetensors) st = safetensors_open(path, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(safetensors_count(st), ==, 4);
    g_assert_cmpstr(safetensors_metadata(st, "format"), ==, "pt");
    g_assert_cmpuint(safetensors_find(st, "scalar")->count, ==, 1);
    g_assert_cmpuint(safetensors_find(st, "empty")->count, ==, 0);
    g_assert_cmpuint(safetensors_find(st, "a")->dims[1], ==, 3);
    g_assert_null(safetensors_find(st, "b"));
    g_assert_cmpuint(safetensors_bytes(st), ==, 34);
    const double *scalar = safetensors_data(st, safetensors_find(st, "scalar"));
    g_assert_cmpfloat(*scalar, ==, 0);
}

static void links_are_followed_and_pipes_are_not_waited_for(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_autofree char *file = put_padded(&scratch, "blob", "{\"a\":" ONE "}", 24);
    g_autofree char *link = g_build_filename(scratch.dir, SAFETENSORS_SINGLE, NULL);
    g_autofree char *pipe = g_build_filename(scratch.dir, "pipe.safetensors", NULL);
    g_assert_cmpint(symlink("blob", link), ==, 0);
    g_assert_cmpint(mkfifo(pipe, 0600), ==, 0);
    g_autoptr(Safetensors) st = safetensors_open(scratch.dir, NULL);
    g_assert_nonnull(st);
    expect_open_fails(pipe, "is not a regular file");
}

static void an_index_and_its_shards_must_agree(void)
{
    static const struct {
        const char *index, *says;
    } rows[] = {
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", NULL},
        {"{\"weight_map\":{\"a\":\"one.safetensors\"}}", NULL}, /* two is never opened */
        {"{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"two.safetensors\"}}", "a: is not in"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}",
         "tensor b: is in two.safetensors, the index says nothing"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\","
         "\"c\":\"two.safetensors\"}}",
         "tensor c: is not in two.safetensors"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"copy.safetensors\"}}",
         "tensor a: is in another file too"},
        {"{\"weight_map\":{\"a\":\"none.safetensors\"}}", "there is no such file"},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\"/etc/one.safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\"passwd\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":7}}", "beside the index"},
        {"{\"weight_map\":[]}", "weight_map: must be an object"},
        {"{}", "weight_map: must be an object"},
        {"[[[[1]]]]", "deeper than 3"},
        {"{", "line 1"},
    };
    AUTO_SCRATCH scratch = scratch_new();
    g_autofree char *one = put_padded(&scratch, "one.safetensors", "{\"a\":" ONE "}", 24);
    g_autofree char *copy = put_padded(&scratch, "copy.safetensors", "{\"a\":" ONE "}", 24);
    g_autofree char *two = put_padded(&scratch, "two.safetensors", "{\"b\":" ONE "}", 24);
    g_autofree char *index = g_build_filename(scratch.dir, SAFETENSORS_INDEX, NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_assert_true(g_file_set_contents(index, rows[i].index, -1, NULL));
        if (rows[i].says != NULL) {
            expect_open_fails(scratch.dir, rows[i].says);
            continue;
        }
        g_autoptr(Safetensors) st = safetensors_open(scratch.dir, NULL);
        g_assert_nonnull(st);
    }
    g_autofree char *single = put_padded(&scratch, SAFETENSORS_SINGLE, "{\"a\":" ONE "}", 24);
    expect_open_fails(scratch.dir, "has both model.safetensors and model.safetensors.index.json");
}

/* Element j of tensor i is 1000 i + j. */
static void fill_numbers(guint i, guint64 first, guint64 count, gpointer out, gpointer user_data)
{
    const SafeTensor *tensors = user_data;
    for (guint64 j = 0; j < count; j++) {
        if (tensors[i].dtype == TENSOR_F32)
            ((float *)out)[j] = (float)(1000 * i + first + j);
        else if (tensors[i].dtype == TENSOR_F64)
            ((double *)out)[j] = (double)(1000 * i + first + j);
        else
            ((guint16 *)out)[j] = (guint16)(1000 * i + first + j);
    }
}

static char name_bf[] = "bf", name_f[] = "f", name_bf2[] = "bf2", name_d[] = "d",
            name_big[] = "big";
static const SafeTensor written[] = {
    {name_bf, TENSOR_BF16, 2, {3, 5}, 15, 0, 0},
    {name_f, TENSOR_F32, 1, {7}, 7, 0, 0},
    {name_bf2, TENSOR_BF16, 1, {1}, 1, 0, 0},
    {name_d, TENSOR_F64, 0, {0}, 1, 0, 0},
    {name_big, TENSOR_F32, 2, {1100, 1000}, 1100000, 0, 0}, /* more than one piece */
};

static void expect_written(const char *dir, guint files)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Safetensors) st = safetensors_open(dir, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(safetensors_count(st), ==, G_N_ELEMENTS(written));
    g_assert_cmpuint(safetensors_files(st), ==, files);
    for (guint i = 0; i < G_N_ELEMENTS(written); i++) {
        const SafeTensor *tensor = safetensors_find(st, written[i].name);
        g_assert_nonnull(tensor);
        g_assert_cmpuint(tensor->dtype, ==, written[i].dtype);
        g_assert_cmpuint(tensor->count, ==, written[i].count);
        gconstpointer data = safetensors_data(st, tensor);
        guint64 last = tensor->count - 1;
        double value = tensor->dtype == TENSOR_F32   ? ((const float *)data)[last]
                       : tensor->dtype == TENSOR_F64 ? ((const double *)data)[last]
                                                     : ((const guint16 *)data)[last];
        g_assert_cmpfloat(value, ==, 1000.0 * i + (double)last);
    }
}

static gboolean write_all(const char *dir, guint64 shard_bytes, GError **error)
{
    const char *const metadata[] = {"seed", "7", NULL};
    return safetensors_write(dir, written, G_N_ELEMENTS(written), shard_bytes, metadata,
                             fill_numbers, (gpointer)(gsize)written, error);
}

static void what_is_written_is_read_back_whole_and_in_shards(void)
{
    static const struct {
        guint64 shard_bytes;
        guint files;
    } rows[] = {{SAFETENSORS_SHARD_BYTES, 1}, {100, 2}, {1, 5}};
    AUTO_SCRATCH scratch = scratch_new();
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *dir = g_strdup_printf("%s/%zu/deep", scratch.dir, i);
        g_autoptr(GError) error = NULL;
        write_all(dir, rows[i].shard_bytes, &error);
        g_assert_no_error(error);
        expect_written(dir, rows[i].files);
        g_assert_false(write_all(dir, rows[i].shard_bytes, &error)); /* never over one */
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
        expect_written(dir, rows[i].files);
    }
}

static void the_data_of_a_written_file_begins_aligned(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_assert_true(write_all(scratch.dir, SAFETENSORS_SHARD_BYTES, NULL));
    g_autoptr(Safetensors) st = safetensors_open(scratch.dir, NULL);
    const SafeTensor *first = safetensors_at(st, 0);
    g_assert_cmpuint(first->offset % 64, ==, 0);
    g_assert_cmpstr(first->name, ==, "d"); /* wide elements first */
    g_assert_cmpstr(safetensors_metadata(st, "seed"), ==, "7");
    g_assert_cmpstr(safetensors_metadata(st, "format"), ==, "pt");
}

static void a_write_that_fails_leaves_no_checkpoint(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_autofree char *blocked = g_build_filename(scratch.dir, SAFETENSORS_INDEX, "in", NULL);
    g_autofree char *file = g_build_filename(scratch.dir, "file", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_set_contents(file, "", 0, NULL));
    g_assert_false(write_all(file, 1, &error)); /* a directory cannot be made there */
    g_assert_nonnull(error);
    g_autofree char *dir = g_build_filename(scratch.dir, "dir", NULL);
    g_autofree char *shard =
        g_build_filename(dir, "model-00003-of-00005.safetensors", "in the way", NULL);
    g_assert_cmpint(g_mkdir_with_parents(shard, 0700), ==, 0);
    g_autoptr(GError) late = NULL;
    g_assert_false(write_all(dir, 1, &late)); /* the fourth shard cannot get its name */
    g_assert_nonnull(strstr(late->message, "00003"));
    g_autoptr(Safetensors) st = safetensors_open(dir, NULL);
    g_assert_null(st);
    g_autoptr(GDir) listing = g_dir_open(dir, 0, NULL);
    for (const char *name; (name = g_dir_read_name(listing)) != NULL;)
        g_assert_cmpstr(name, ==, "model-00003-of-00005.safetensors");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name) g_test_add_func("/safetensors/" #name, name)
    T(lying_headers_are_refused_with_their_reason);
    T(a_header_length_that_lies_is_refused_before_it_is_used);
    T(a_misaligned_tensor_is_refused);
    T(deep_and_wide_json_costs_nothing);
    T(good_files_of_any_shape_are_read);
    T(links_are_followed_and_pipes_are_not_waited_for);
    T(an_index_and_its_shards_must_agree);
    T(what_is_written_is_read_back_whole_and_in_shards);
    T(the_data_of_a_written_file_begins_aligned);
    T(a_write_that_fails_leaves_no_checkpoint);
    return g_test_run();
}
