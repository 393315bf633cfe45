/*
 * What registries and archives send, mutated: parsers must refuse or accept, and never misstep.
 *
 * A fixed seed and number of rounds; ASSAY_FUZZ_ROUNDS gives more. Run it under the sanitizers.
 * Every archive is unpacked beside a canary, which must stay as it was.
 */
#include "sandbox/image.h"
#include "sandbox/registry_auth.h"
#include "sandbox/unpack.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROUNDS_DEFAULT 600
#define SEED           20260101u

static const char hex64[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static GRand *randomness;

static guint rounds(void)
{
    const char *text = g_getenv("ASSAY_FUZZ_ROUNDS");
    guint64 n = ROUNDS_DEFAULT;
    if (text != NULL)
        g_ascii_string_to_unsigned(text, 10, 1, 100000000, &n, NULL);
    return (guint)n;
}

/* A few bytes changed, removed, doubled or cut. */
static GByteArray *mutate(const void *seed, gsize len)
{
    static const char *const words[] = {
        "-1", "99999999999999999999", "null", "[]", "{}", "\"", "../../x", "/", "\0x", ".wh."};
    GByteArray *bytes = g_byte_array_new();
    g_byte_array_append(bytes, seed, (guint)len);
    for (int n = g_rand_int_range(randomness, 1, 6); n > 0 && bytes->len > 4; n--) {
        guint at = (guint)g_rand_int_range(randomness, 0, (gint32)bytes->len - 2);
        guint many = (guint)g_rand_int_range(randomness, 1, 40);
        many = MIN(many, bytes->len - at);
        const char *word = words[g_rand_int_range(randomness, 0, G_N_ELEMENTS(words))];
        switch (g_rand_int_range(randomness, 0, 5)) {
        case 0:
            bytes->data[at] = (guint8)g_rand_int(randomness);
            break;
        case 1:
            g_byte_array_remove_range(bytes, at, many);
            break;
        case 2:
            bytes->data[at] ^= (guint8)(1u << g_rand_int_range(randomness, 0, 8));
            break;
        case 3:
            memcpy(bytes->data + at, word, MIN(strlen(word), bytes->len - at));
            break;
        default:
            if (g_rand_int_range(randomness, 0, 8) == 0)
                g_byte_array_set_size(bytes, at + 1);
        }
    }
    return bytes;
}

static char *seed_text(const char *format)
{
    g_autoptr(GString) text = g_string_new(format);
    g_string_replace(text, "HEX", hex64, 0);
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void parse_all(const json_t *value)
{
    g_auto(ImageManifest) manifest = {0}, docker = {0};
    g_autofree char *tag = NULL;
    g_auto(GStrv) ids = image_diff_ids(value, 2, NULL);
    ImageBlob blob = {0};
    if (image_manifest_parse(value, &manifest, NULL))
        g_assert_true(depot_digest_ok(manifest.config.digest));
    image_docker_parse(value, "docker.io/library/a:1", &docker, &tag, NULL);
    if (image_index_pick(value, "linux/amd64", NULL, &blob, NULL))
        g_assert_true(depot_digest_ok(blob.digest));
    image_blob_clear(&blob);
    Image image = {.config = json_incref((json_t *)(gsize)value)};
    g_auto(GStrv) envp = image_config_envp(&image, 0);
    g_auto(GStrv) argv = image_config_argv(&image);
    g_assert_nonnull(image_config_str(&image, "WorkingDir"));
    json_decref(image.config);
}

static void mutated_manifests_are_refused_or_read(void)
{
    static const char *const seeds[] = {
        "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"x\",\"digest\":\"sha256:HEX\","
        "\"size\":7,\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\",\"variant\":\"v8\"},"
        "\"annotations\":{\"org.opencontainers.image.ref.name\":\"a:1\"}}]}",
        "{\"config\":{\"digest\":\"sha256:HEX\",\"size\":5},\"layers\":[{\"mediaType\":"
        "\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:HEX\",\"size\":9}]}",
        "[{\"Config\":\"x.json\",\"RepoTags\":[\"a:1\"],\"Layers\":[\"a/layer.tar\",\"b\"]}]",
        "{\"Env\":[\"PATH=/bin\",\"A=b\"],\"Cmd\":[\"sh\"],\"Entrypoint\":null,\"WorkingDir\":\"/"
        "\","
        "\"rootfs\":{\"diff_ids\":[\"sha256:HEX\",\"sha256:HEX\"]}}"};
    guint parsed = 0;
    for (guint i = 0; i < rounds() * 4; i++) {
        g_autofree char *seed = seed_text(seeds[i % G_N_ELEMENTS(seeds)]);
        g_autoptr(GByteArray) bytes = mutate(seed, strlen(seed));
        g_autoptr(json_t) value = json_parse((const char *)bytes->data, bytes->len, NULL);
        parsed += value != NULL;
        if (value != NULL)
            parse_all(value);
    }
    g_assert_cmpuint(parsed, >, rounds() / 10); /* else the parsers were not met */
}

static void mutated_words_of_registries_are_refused_or_read(void)
{
    static const char challenge[] =
        "Bearer realm=\"https://auth.example/token\",service=\"a b\",scope=\"repository:x:pull\"";
    g_autofree char *ref = seed_text("h.example:5000/a/b_c:tag@sha256:HEX");
    for (guint i = 0; i < rounds() * 4; i++) {
        g_autoptr(GByteArray) bytes =
            i % 2 == 0 ? mutate(challenge, sizeof challenge - 1) : mutate(ref, strlen(ref));
        g_byte_array_append(bytes, (const guint8 *)"", 1);
        g_auto(RegistryChallenge) parsed = {0};
        registry_challenge_parse((const char *)bytes->data, &parsed);
        g_assert_true(parsed.scheme != REGISTRY_SCHEME_BEARER || parsed.realm != NULL);
        g_autofree char *name = image_name_normal((const char *)bytes->data, NULL);
        if (name != NULL)
            g_assert_null(strpbrk(name, "\r\n ?#\\\""));
    }
}

/* ---- archives ---- */

static void tar_add(GByteArray *tar, const char *name, char type, const char *link,
                    const char *data)
{
    char block[512] = {0};
    gsize len = strlen(data);
    g_strlcpy(block, name, 100);
    memcpy(block + 100, "0000644", 7);
    memcpy(block + 108, "0000007", 7);
    memcpy(block + 116, "0000007", 7);
    g_snprintf(block + 124, 12, "%011zo", len);
    memcpy(block + 136, "00000000001", 11);
    block[156] = type;
    g_strlcpy(block + 157, link, 100);
    memcpy(block + 257, "ustar\00000", 8);
    memset(block + 148, ' ', 8);
    unsigned sum = 0;
    for (gsize i = 0; i < sizeof block; i++)
        sum += (guint8)block[i];
    g_snprintf(block + 148, 8, "%06o", sum);
    g_byte_array_append(tar, (const guint8 *)block, sizeof block);
    g_byte_array_append(tar, (const guint8 *)data, (guint)len);
    g_byte_array_set_size(tar, (tar->len + 511) / 512 * 512);
}

static GByteArray *tar_seed(void)
{
    GByteArray *tar = g_byte_array_new();
    tar_add(tar, "pax", 'x', "", "30 mtime=1350244992.023960108\n23 path=dir/long-name-x\n");
    tar_add(tar, "f", '0', "", "data");
    tar_add(tar, "dir/", '5', "", "");
    tar_add(tar, "dir/link", '2', "../../outside", "");
    tar_add(tar, "hard", '1', "dir/long-name-x", "");
    tar_add(tar, "dir/.wh.gone", '0', "", "");
    tar_add(tar, "dir/.wh..wh..opq", '0', "", "");
    tar_add(tar, "long", 'L', "", "a/very/long/name/of/gnu");
    tar_add(tar, "x", '0', "", "more data");
    tar_add(tar, "pax", 'x', "", "30 SCHILY.xattr.user.key=value\n22 GNU.sparse.major=1\n");
    tar_add(tar, "sparse", '0', "", "1\n0\n0\n");
    static const guint8 end[1024];
    g_byte_array_append(tar, end, sizeof end);
    return tar;
}

/* Headers whose sums fit again, or else most mutations end at the first check. */
static void mend_sums(GByteArray *tar)
{
    for (guint at = 0; at + 512 <= tar->len; at += 512) {
        guint8 *block = tar->data + at;
        if (memcmp(block + 257, "ustar", 5) != 0)
            continue;
        memset(block + 148, ' ', 8);
        unsigned sum = 0;
        for (int i = 0; i < 512; i++)
            sum += block[i];
        g_snprintf((char *)block + 148, 8, "%06o", sum);
    }
}

static void on_note(UnpackNote kind, const char *path, guint uid, guint gid, gpointer data)
{
    g_assert_true(uid <= UNPACK_ID_NOBODY && gid <= UNPACK_ID_NOBODY && kind != 0);
    g_assert_null(strstr(path, "//"));
    g_assert_cmpint(path[0], !=, '/');
    (*(guint *)data)++;
}

static void mutated_archives_stay_in_their_tree(void)
{
    const UnpackLimits limits = {100, 1 << 20};
    g_autofree char *top = g_dir_make_tmp("assay-fuzz-XXXXXX", NULL);
    AUTO_FD top_fd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autoptr(GByteArray) seed = tar_seed();
    guint good = 0, notes = 0;
    for (guint i = 0; i < rounds(); i++) {
        g_autoptr(GByteArray) bytes = mutate(seed->data, seed->len);
        if (i % 4 != 0)
            mend_sums(bytes);
        AUTO_FD in = memfd_create("fuzz", MFD_CLOEXEC);
        g_assert_true(fd_write_all(in, bytes->data, bytes->len, NULL));
        lseek(in, 0, SEEK_SET);
        AUTO_FD tree = tree_open_dir(top_fd, "tree", 0755, NULL);
        UnpackSums sums;
        g_autoptr(GError) error = NULL;
        gboolean ok = unpack_tar(in, tree, &limits, on_note, &notes, &sums, &error);
        g_assert_true(ok || error != NULL);
        g_assert_true(ok || !g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND));
        good += ok;
        g_assert_true(tree_remove(top_fd, "tree", NULL));
        g_assert_cmpint(unlinkat(top_fd, "outside", 0), ==, -1);
    }
    g_assert_cmpuint(good, >, 0);
    g_assert_cmpuint(good, <, rounds());
    g_assert_cmpuint(notes, >, 0);
    g_assert_cmpint(rmdir(top), ==, 0); /* nothing else was made */
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    randomness = g_rand_new_with_seed(SEED);
    g_test_add_func("/fuzz/mutated_manifests_are_refused_or_read",
                    mutated_manifests_are_refused_or_read);
    g_test_add_func("/fuzz/mutated_words_of_registries_are_refused_or_read",
                    mutated_words_of_registries_are_refused_or_read);
    g_test_add_func("/fuzz/mutated_archives_stay_in_their_tree",
                    mutated_archives_stay_in_their_tree);
    int status = g_test_run();
    g_rand_free(randomness);
    return status;
}
