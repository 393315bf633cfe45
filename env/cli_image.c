/*
 * assay image: the images of this machine.
 *
 * Invariants:
 *   1. No daemon is asked: the store is safe for several processes.
 *   2. Ctrl-C stops the box or the transfer; what was staged goes with the command.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/image.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#define SLOT_FIRST        1024u /* as box_tool.c: spread over pids, two of us rarely share one */
#define SLOTS             1000u
#define PROGRESS_EVERY_US 200000
#define ID_CHARS          19 /* "sha256:" and 12 digits */

static int interrupt_fds[2] = {-1, -1};

static void on_interrupt(int number)
{
    (void)number;
    ssize_t n = write(interrupt_fds[1], "", 1);
    (void)n;
}

static gboolean interrupts_to_fd(GError **error)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    if (pipe2(interrupt_fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return error_set_errno(error, errno, "pipe");
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return TRUE;
}

static Depot *depot_of(Cli *cli, GError **error)
{
    g_autofree char *dir = g_build_filename(config_text(cli->config, CONFIG_STATE), "images", NULL);
    return depot_open(dir, (guint64)config_int(cli->config, CONFIG_IMAGES_MIB) << 20, error);
}

typedef struct Talk {
    Cli *cli;
    gint64 drawn_us;
    gboolean drawn;
} Talk;

static void talk_wipe(Talk *talk)
{
    if (talk->drawn)
        fprintf(stderr, "\r\033[K");
    talk->drawn = FALSE;
}

static void on_progress(ImageStep step, const char *digest, guint64 done, guint64 total,
                        gpointer data)
{
    Talk *talk = data;
    gint64 now_us = g_get_monotonic_time();
    if (step != IMAGE_STEP_FETCH) {
        talk_wipe(talk);
        cli_say(talk->cli, "%.*s %s", ID_CHARS, digest,
                step == IMAGE_STEP_HAVE ? "is there already" : "unpacking");
        return;
    }
    if (!talk->cli->err_tty || talk->cli->quiet || now_us - talk->drawn_us < PROGRESS_EVERY_US)
        return;
    talk->drawn_us = now_us;
    talk->drawn = TRUE;
    fprintf(stderr, "\r%.*s %.1f of %.1f MiB ", ID_CHARS, digest, (double)done / (1 << 20),
            (double)total / (1 << 20));
}

static json_t *image_json(Depot *depot, const Image *image)
{
    json_t *layers = json_array();
    guint64 bytes = 0;
    for (char **digest = image->layers; *digest != NULL; digest++) {
        guint64 one = depot_layer_bytes(depot, *digest);
        bytes += one;
        json_array_append_new(layers,
                              json_pack("{s:s, s:I}", "digest", *digest, "bytes", (json_int_t)one));
    }
    json_int_t whole =
        image->erofs != NULL ? (json_int_t)depot_layer_bytes(depot, image->erofs) : 0;
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:O}", "name", image->name, "id",
                     image->id, "platform", image->platform, "bytes", (json_int_t)bytes,
                     "erofs_bytes", whole, "set_ms", (json_int_t)image->set_ms, "layers", layers,
                     "config", image->config);
}

/* The end of pull and import. */
static int brought(Cli *cli, Depot *depot, Image *image, Talk *talk, GError *error)
{
    g_autoptr(Image) owned = image;
    talk_wipe(talk);
    if (owned == NULL)
        return g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT)
                   ? (cli_error(cli, error, NULL), CLI_INTERRUPTED)
                   : cli_error(cli, error, NULL);
    g_autoptr(json_t) value = image_json(depot, owned);
    if (cli->json)
        cli_print_json(value);
    else
        puts(owned->name);
    return CLI_OK;
}

static int bring(Cli *cli, gboolean pull)
{
    GError *error = NULL;
    Talk talk = {.cli = cli};
    g_autoptr(Depot) depot = depot_of(cli, &error);
    if (depot == NULL || !interrupts_to_fd(&error))
        return cli_error(cli, error, NULL);
    const ImageOptions options = {.slot = SLOT_FIRST + (guint)getpid() % SLOTS,
                                  .platform = cli_option(cli, "platform"),
                                  .auth = cli_option(cli, "auth"),
                                  .insecure = cli_has(cli, "insecure"),
                                  .cancel_fd = interrupt_fds[0],
                                  .progress = on_progress,
                                  .progress_data = &talk};
    Image *image = pull ? image_pull(depot, cli_arg(cli, 0), &options, &error)
                        : image_import(depot, cli_arg(cli, 0), cli_arg(cli, 1), &options, &error);
    return brought(cli, depot, image, &talk, error);
}

int cli_image_pull(Cli *cli)
{
    return bring(cli, TRUE);
}

int cli_image_import(Cli *cli)
{
    return bring(cli, FALSE);
}

int cli_image_ls(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    g_autoptr(GPtrArray) images = depot == NULL ? NULL : image_list(depot, &error);
    if (images == NULL)
        return cli_error(cli, error, NULL);
    CliTable *table = cli->json ? NULL
                                : cli_table_new(cli, (const char *[]){"image", "id", "layers",
                                                                      "bytes", "platform", NULL});
    for (guint i = 0; i < images->len; i++) {
        const Image *image = images->pdata[i];
        g_autoptr(json_t) value = image_json(depot, image);
        if (cli->json) {
            cli_print_json(value);
            continue;
        }
        g_autofree char *id = g_strndup(image->id, ID_CHARS);
        g_autofree char *n = g_strdup_printf("%u", g_strv_length(image->layers));
        g_autofree char *bytes = g_strdup_printf("%lld", (long long)cli_json_int(value, "bytes"));
        cli_table_add(table, image->name, id, n, bytes, image->platform, NULL);
    }
    if (table != NULL)
        cli_table_end(table);
    return CLI_OK;
}

int cli_image_show(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    g_autoptr(Image) image = depot == NULL ? NULL : image_get(depot, cli_arg(cli, 0), &error);
    if (image == NULL)
        return cli_error(cli, error, "assay image ls");
    g_autoptr(json_t) value = image_json(depot, image);
    if (cli->json) {
        cli_print_json(value);
        return CLI_OK;
    }
    g_autofree char *text = json_dumps(value, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    puts(text);
    return CLI_OK;
}

static int collect(Cli *cli, Depot *depot)
{
    GError *error = NULL;
    guint64 bytes = 0;
    guint n = depot_gc(depot, &bytes, &error);
    if (error != NULL)
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) value = json_pack("{s:i, s:I}", "layers", (int)n, "bytes", (json_int_t)bytes);
    if (cli->json)
        cli_print_json(value);
    else
        printf("%u layers, %" G_GUINT64_FORMAT " bytes\n", n, bytes);
    return CLI_OK;
}

int cli_image_rm(Cli *cli)
{
    GError *error = NULL;
    int status = CLI_OK;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    if (depot == NULL)
        return cli_error(cli, error, NULL);
    for (guint i = 0; i < cli->args->len; i++) {
        g_autoptr(GError) local = NULL;
        if (!image_remove(depot, cli_arg(cli, i), &local))
            status = cli_error(cli, g_steal_pointer(&local), "assay image ls");
    }
    int collected = collect(cli, depot);
    return status != CLI_OK ? status : collected;
}

int cli_image_gc(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    return depot == NULL ? cli_error(cli, error, NULL) : collect(cli, depot);
}

/* How many images hold each layer. */
static GHashTable *holders_of(const GPtrArray *images)
{
    GHashTable *holders = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < images->len; i++) {
        char **layers = ((const Image *)images->pdata[i])->layers;
        for (char **digest = layers; *digest != NULL; digest++) {
            if (g_strv_contains((const char *const *)digest + 1, *digest))
                continue; /* the same layer twice in one image */
            guint n = GPOINTER_TO_UINT(g_hash_table_lookup(holders, *digest));
            g_hash_table_replace(holders, *digest, GUINT_TO_POINTER(n + 1));
        }
    }
    return holders;
}

int cli_image_du(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    g_autoptr(GPtrArray) images = depot == NULL ? NULL : image_list(depot, &error);
    if (images == NULL)
        return cli_error(cli, error, NULL);
    g_autoptr(GHashTable) holders = holders_of(images);
    CliTable *table =
        cli->json ? NULL : cli_table_new(cli, (const char *[]){"image", "own", "shared", NULL});
    for (guint i = 0; i < images->len; i++) {
        const Image *image = images->pdata[i];
        guint64 sums[2] = {0};
        if (image->erofs != NULL)
            sums[0] = depot_layer_bytes(depot, image->erofs);
        for (char **digest = image->layers; *digest != NULL; digest++)
            sums[GPOINTER_TO_UINT(g_hash_table_lookup(holders, *digest)) > 1] +=
                depot_layer_bytes(depot, *digest);
        g_autofree char *own = g_strdup_printf("%" G_GUINT64_FORMAT, sums[0]);
        g_autofree char *shared = g_strdup_printf("%" G_GUINT64_FORMAT, sums[1]);
        g_autoptr(json_t) row = json_pack("{s:s, s:I, s:I}", "name", image->name, "own_bytes",
                                          (json_int_t)sums[0], "shared_bytes", (json_int_t)sums[1]);
        if (table != NULL)
            cli_table_add(table, image->name, own, shared, NULL);
        else
            cli_print_json(row);
    }
    g_autofree char *all = g_strdup_printf("%" G_GUINT64_FORMAT, depot_bytes(depot));
    if (table != NULL) {
        cli_table_add(table, "all layers", all, "", NULL);
        cli_table_end(table);
    }
    return CLI_OK;
}

int cli_image_verify(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    g_autoptr(Image) image = depot == NULL ? NULL : image_get(depot, cli_arg(cli, 0), &error);
    if (image == NULL)
        return cli_error(cli, error, "assay image ls");
    for (char **digest = image->layers; *digest != NULL; digest++)
        if (!depot_layer_verify(depot, *digest, &error))
            return cli_error(cli, error, NULL);
    if (image->erofs != NULL && !depot_layer_verify(depot, image->erofs, &error))
        return cli_error(cli, error, NULL);
    cli_say(cli, "%u layers are as they were unpacked", g_strv_length(image->layers));
    return CLI_OK;
}

int cli_image_erofs(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Depot) depot = depot_of(cli, &error);
    g_autoptr(Image) image =
        depot == NULL ? NULL : image_erofs_make(depot, cli_arg(cli, 0), &error);
    if (image == NULL)
        return cli_error(cli, error, "assay doctor");
    if (cli->json) {
        g_autoptr(json_t) value = image_json(depot, image);
        cli_print_json(value);
    } else {
        printf("%" G_GUINT64_FORMAT " bytes\n", depot_layer_bytes(depot, image->erofs));
    }
    return CLI_OK;
}
