/*
 * The depot of layers.
 *
 * Invariants:
 *   1. A directory under layers/ is complete: it was renamed there after the work. A file under
 *      names/ is complete: it was renamed over the old one.
 *   2. Names change, and layers disappear, only under the exclusive lock of the file "lock".
 *   3. A layer is removed only while its "upper" is locked exclusively; everyone who uses one holds
 *      a shared lock on that directory, through the descriptor itself.
 *   4. A directory under tmp/ whose lock can be taken belongs to nobody alive.
 *
 * Not here: what is in a layer (image_unpack.c), digests of trees (depot_digest.c).
 */
#include "sandbox/depot.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"
#include "sandbox/box.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define NAME_BYTES_MAX   180
#define FILE_BYTES_MAX   230 /* and what a file is called while it is written */
#define RECORD_BYTES_MAX (16u << 20)
#define OPEN_TRIES       10

struct Depot {
    char *dir;
    guint64 bytes_max;
    int dir_fd, layers_fd, names_fd, tmp_fd;
};

typedef gboolean (*DirFn)(Depot *depot, const char *name, gpointer data, GError **error);

gboolean depot_digest_ok(const char *digest)
{
    return g_str_has_prefix(digest, "sha256:") && strlen(digest) == 71 &&
           strspn(digest + 7, "0123456789abcdef") == 64;
}

/* "sha256:HEX" as a file name. */
static char *layer_file(const char *digest, GError **error)
{
    if (!depot_digest_ok(digest)) {
        error_set(error, ASSAY_ERROR_INPUT, "%.80s is not a sha256 digest", digest);
        return NULL;
    }
    return g_strdup_printf("sha256-%s", digest + 7);
}

Depot *depot_open(const char *dir, guint64 bytes_max, GError **error)
{
    if (g_mkdir_with_parents(dir, 0711) < 0) {
        error_set_errno(error, errno, "make the image store %s", dir);
        return NULL;
    }
    g_autoptr(Depot) depot = g_new0(Depot, 1);
    depot->layers_fd = depot->names_fd = depot->tmp_fd = -1;
    depot->dir = g_strdup(dir);
    depot->bytes_max = bytes_max;
    depot->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (depot->dir_fd < 0) {
        error_set_errno(error, errno, "open the image store %s", dir);
        return NULL;
    }
    if ((depot->layers_fd = tree_open_dir(depot->dir_fd, "layers", 0711, error)) < 0 ||
        (depot->names_fd = tree_open_dir(depot->dir_fd, "names", 0700, error)) < 0 ||
        (depot->tmp_fd = tree_open_dir(depot->dir_fd, "tmp", 0711, error)) < 0) {
        g_prefix_error(error, "image store %s: ", dir);
        return NULL;
    }
    return g_steal_pointer(&depot);
}

void depot_free(Depot *depot)
{
    if (depot == NULL)
        return;
    int fds[] = {depot->dir_fd, depot->layers_fd, depot->names_fd, depot->tmp_fd};
    for (gsize i = 0; i < G_N_ELEMENTS(fds); i++)
        fd_close_p(&fds[i]);
    g_free(depot->dir);
    g_free(depot);
}

/* The depot's lock; closing it unlocks. */
static int lock_take(const Depot *depot, GError **error)
{
    AUTO_FD fd = openat(depot->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        error_set_errno(error, errno, "lock the image store %s", depot->dir);
        return -1;
    }
    return fd_take(&fd);
}

static gboolean for_each(Depot *depot, int dir_fd, DirFn fn, gpointer data, GError **error)
{
    int again = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (dir == NULL)
        return error_set_errno(error, errno, "list the image store");
    gboolean ok = TRUE;
    for (struct dirent *entry; ok && (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.')
            ok = fn(depot, entry->d_name, data, error);
    closedir(dir);
    return ok;
}

/* ---- stages ---- */

/* Removes NAME of tmp/ when its owner is gone. */
static gboolean stage_sweep(Depot *depot, const char *name, gpointer data, GError **error)
{
    (void)data;
    AUTO_FD fd = openat(depot->tmp_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return TRUE;
    return tree_remove(depot->tmp_fd, name, error);
}

static gboolean stage_fill(int dir_fd, GError **error)
{
    static const char *const names[] = {"upper", "work"};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        AUTO_FD fd = tree_open_dir(dir_fd, names[i], 0755, error);
        if (fd < 0 || !tree_chown(dir_fd, names[i], box_store_uid(), box_store_gid(), error))
            return FALSE;
    }
    return fchown(dir_fd, box_store_uid(), box_store_gid()) == 0 ||
           error_set_errno(error, errno, "give the stage to the box's user");
}

DepotStage *depot_stage(Depot *depot, GError **error)
{
    AUTO_FD lock = lock_take(depot, error); /* nobody may sweep it before we have locked it */
    if (lock < 0 || !for_each(depot, depot->tmp_fd, stage_sweep, NULL, error))
        return NULL;
    g_autoptr(DepotStage) stage = g_new0(DepotStage, 1);
    stage->depot = depot;
    stage->name = id_new("stage");
    stage->dir_fd = tree_open_dir(depot->tmp_fd, stage->name, 0711, error);
    if (stage->dir_fd < 0)
        return NULL;
    if (flock(stage->dir_fd, LOCK_EX | LOCK_NB) < 0) {
        error_set_errno(error, errno, "lock the stage");
        return NULL;
    }
    return stage_fill(stage->dir_fd, error) ? g_steal_pointer(&stage) : NULL;
}

void depot_stage_free(DepotStage *stage)
{
    if (stage == NULL)
        return;
    if (stage->dir_fd >= 0) {
        tree_remove(stage->depot->tmp_fd, stage->name, NULL);
        close(stage->dir_fd);
    }
    g_free(stage->name);
    g_free(stage);
}

/* ---- layers ---- */

static json_t *json_file(int dir_fd, const char *name, GError **error)
{
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        if (errno == ENOENT)
            error_set(error, ASSAY_ERROR_NOT_FOUND, "there is none");
        else
            error_set_errno(error, errno, "open %s", name);
        return NULL;
    }
    g_autoptr(GBytes) bytes = fd_read_all(fd, RECORD_BYTES_MAX, error);
    return bytes == NULL
               ? NULL
               : json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
}

/* The descriptor of layers/FILE/upper, locked against collection. */
static int layer_open(const Depot *depot, const char *file, GError **error)
{
    g_autofree char *path = g_strconcat(file, "/upper", NULL);
    for (int i = 0; i < OPEN_TRIES; i++) {
        struct stat ours, there;
        AUTO_FD fd = openat(depot->layers_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT)
            break;
        if (fd < 0 || flock(fd, LOCK_SH) < 0) {
            error_set_errno(error, errno, "open layer %s", file);
            return -1;
        }
        /* It may have been collected, and made again, while we waited. */
        if (fstat(fd, &ours) == 0 && fstatat(depot->layers_fd, path, &there, 0) == 0 &&
            ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
            return fd_take(&fd);
    }
    error_set(error, ASSAY_ERROR_NOT_FOUND, "there is no layer %s", file);
    return -1;
}

int depot_layer_open(Depot *depot, const char *digest, GError **error)
{
    g_autofree char *file = layer_file(digest, error);
    return file == NULL ? -1 : layer_open(depot, file, error);
}

static gboolean meta_write(int dir_fd, guint64 bytes, const char *tree, GError **error)
{
    g_autoptr(json_t) meta = json_pack("{s:I, s:s, s:I}", "bytes", (json_int_t)bytes, "tree", tree,
                                       "made_ms", (json_int_t)clock_wall_ms());
    g_autofree char *text = json_print(meta);
    AUTO_FD fd = openat(dir_fd, "meta.json", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_set_errno(error, errno, "create meta.json");
    return fd_write_all(fd, text, strlen(text), error) &&
           (fsync(fd) == 0 || error_set_errno(error, errno, "fsync meta.json"));
}

/* Only what a layer consists of is left in the stage. */
static gboolean stage_strip(DepotStage *stage, GError **error)
{
    int again = openat(stage->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (dir == NULL)
        return error_set_errno(error, errno, "list the stage");
    gboolean ok = TRUE;
    for (struct dirent *entry; ok && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, "upper") != 0)
            ok = tree_remove(stage->dir_fd, entry->d_name, error);
    closedir(dir);
    return ok;
}

int depot_commit(Depot *depot, DepotStage *stage, const char *digest, GError **error)
{
    g_autofree char *file = layer_file(digest, error);
    AUTO_FD upper = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (file == NULL || upper < 0 || flock(upper, LOCK_SH) < 0) {
        if (file != NULL)
            error_set_errno(error, errno, "open the stage's tree");
        return -1;
    }
    guint64 bytes = tree_bytes(upper);
    g_autofree char *tree = depot_tree_digest(upper, error);
    if (tree == NULL || !stage_strip(stage, error) ||
        !meta_write(stage->dir_fd, bytes, tree, error))
        return -1;

    AUTO_FD lock = lock_take(depot, error);
    if (lock < 0)
        return -1;
    int old = layer_open(depot, file, NULL);
    if (old >= 0)
        return old;
    if (bytes > depot_bytes_left(depot)) {
        error_set(error, ASSAY_ERROR_LIMIT,
                  "the image store is full: %" G_GUINT64_FORMAT " more bytes are over its quota of "
                  "%" G_GUINT64_FORMAT,
                  bytes, depot->bytes_max);
        return -1;
    }
    syncfs(stage->dir_fd);
    if (fchown(stage->dir_fd, geteuid(), getegid()) < 0 ||
        renameat(depot->tmp_fd, stage->name, depot->layers_fd, file) < 0) {
        error_set_errno(error, errno, "keep layer %s", file);
        return -1;
    }
    fsync(depot->layers_fd);
    close(stage->dir_fd);
    stage->dir_fd = -1;
    return fd_take(&upper);
}

static guint64 layer_bytes(const Depot *depot, const char *file)
{
    g_autofree char *path = g_strconcat(file, "/meta.json", NULL);
    g_autoptr(json_t) meta = json_file(depot->layers_fd, path, NULL);
    return (guint64)json_integer_value(json_object_get(meta, "bytes"));
}

guint64 depot_layer_bytes(Depot *depot, const char *digest)
{
    g_autofree char *file = layer_file(digest, NULL);
    return file == NULL ? 0 : layer_bytes(depot, file);
}

static gboolean bytes_add(Depot *depot, const char *file, gpointer sum, GError **error)
{
    (void)error;
    *(guint64 *)sum += layer_bytes(depot, file);
    return TRUE;
}

guint64 depot_bytes(Depot *depot)
{
    guint64 sum = 0;
    for_each(depot, depot->layers_fd, bytes_add, &sum, NULL);
    return sum;
}

guint64 depot_bytes_left(Depot *depot)
{
    if (depot->bytes_max == 0)
        return G_MAXINT64;
    guint64 used = depot_bytes(depot);
    return used >= depot->bytes_max ? 0 : depot->bytes_max - used;
}

gboolean depot_layer_verify(Depot *depot, const char *digest, GError **error)
{
    g_autofree char *file = layer_file(digest, error);
    AUTO_FD upper = file == NULL ? -1 : layer_open(depot, file, error);
    if (upper < 0)
        return FALSE;
    g_autofree char *path = g_strconcat(file, "/meta.json", NULL);
    g_autoptr(json_t) meta = json_file(depot->layers_fd, path, error);
    g_autofree char *now = meta != NULL ? depot_tree_digest(upper, error) : NULL;
    if (now == NULL) {
        g_prefix_error(error, "layer %s: ", digest);
        return FALSE;
    }
    return g_strcmp0(now, json_string_value(json_object_get(meta, "tree"))) == 0 ||
           error_set(error, ASSAY_ERROR_INPUT, "layer %s: the tree was changed on disk", digest);
}

/* ---- names ---- */

/* Letters, digits and a few marks as they are, the rest as %XX: no slash, no leading dot. */
static char *name_file(const char *name, GError **error)
{
    gsize len = strlen(name);
    g_autoptr(GString) file = g_string_new(NULL);
    if (len == 0 || len > NAME_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "a name has 1 to %d bytes", NAME_BYTES_MAX);
        return NULL;
    }
    for (const char *at = name; *at != '\0'; at++) {
        if ((guchar)*at < 0x20 || *at == 0x7f) {
            error_set(error, ASSAY_ERROR_INPUT, "the name has a control byte");
            return NULL;
        }
        if (g_ascii_isalnum(*at) || strchr("-_:@", *at) != NULL || (*at == '.' && at > name))
            g_string_append_c(file, *at);
        else
            g_string_append_printf(file, "%%%02X", (guchar)*at);
    }
    g_string_append(file, ".json");
    if (file->len > FILE_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_LIMIT, "the name is too long");
        return NULL;
    }
    return g_string_free(g_steal_pointer(&file), FALSE);
}

void depot_name_free(DepotName *name)
{
    if (name == NULL)
        return;
    g_free(name->name);
    g_strfreev(name->layers);
    json_decref(name->data);
    g_free(name);
}

static DepotName *name_read(const Depot *depot, const char *file, GError **error)
{
    g_autoptr(json_t) record = json_file(depot->names_fd, file, error);
    if (record == NULL)
        return NULL;
    const json_t *layers = json_object_get(record, "layers");
    const char *text = json_want_str(record, "name", error);
    if (text == NULL)
        return NULL;
    g_autoptr(DepotName) name = g_new0(DepotName, 1);
    name->name = g_strdup(text);
    name->layers = g_new0(char *, json_array_size(layers) + 1);
    for (gsize i = 0; i < json_array_size(layers); i++) {
        const char *digest = json_string_value(json_array_get(layers, i));
        if (digest == NULL || !depot_digest_ok(digest)) {
            error_set(error, ASSAY_ERROR_INPUT, "%s: field layers: not a digest", file);
            return NULL;
        }
        name->layers[i] = g_strdup(digest);
    }
    name->data = json_incref(json_object_get(record, "data"));
    name->set_ms = json_integer_value(json_object_get(record, "set_ms"));
    return g_steal_pointer(&name);
}

gboolean depot_name_set(Depot *depot, const char *name, const char *const *layers,
                        const json_t *data, GError **error)
{
    g_autofree char *file = name_file(name, error);
    g_autoptr(json_t) list = json_array();
    AUTO_FD lock = file == NULL ? -1 : lock_take(depot, error);
    if (lock < 0)
        return FALSE;
    for (; *layers != NULL; layers++) {
        AUTO_FD layer = depot_layer_open(depot, *layers, error);
        if (layer < 0)
            return FALSE;
        json_array_append_new(list, json_string(*layers));
    }
    if (json_array_size(list) > DEPOT_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: more than %d layers", name,
                         DEPOT_LAYERS_MAX);
    g_autoptr(json_t) record = json_pack("{s:s, s:O, s:O, s:I}", "name", name, "layers", list,
                                         "data", data, "set_ms", (json_int_t)clock_wall_ms());
    if (record == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "the name is not UTF-8");
    g_autofree char *text = json_print(record);
    g_autofree char *path = g_build_filename(depot->dir, "names", file, NULL);
    return file_write_atomic(path, text, strlen(text), error);
}

DepotName *depot_name_get(Depot *depot, const char *name, GError **error)
{
    g_autofree char *file = name_file(name, error);
    DepotName *found = file == NULL ? NULL : name_read(depot, file, error);
    if (found == NULL)
        g_prefix_error(error, "%s: ", name);
    return found;
}

gboolean depot_name_unset(Depot *depot, const char *name, GError **error)
{
    g_autofree char *file = name_file(name, error);
    AUTO_FD lock = file == NULL ? -1 : lock_take(depot, error);
    if (lock < 0)
        return FALSE;
    if (unlinkat(depot->names_fd, file, 0) == 0)
        return TRUE;
    return errno == ENOENT ? error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: there is none", name)
                           : error_set_errno(error, errno, "remove %s", name);
}

static gboolean name_collect(Depot *depot, const char *file, gpointer list, GError **error)
{
    if (!g_str_has_suffix(file, ".json"))
        return TRUE; /* being written */
    g_autoptr(GError) local = NULL;
    DepotName *name = name_read(depot, file, &local);
    if (name != NULL)
        g_ptr_array_add(list, name);
    else if (!g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
        g_propagate_prefixed_error(error, g_steal_pointer(&local), "names/%s: ", file);
        return FALSE;
    }
    return TRUE;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    const DepotName *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

GPtrArray *depot_name_list(Depot *depot, const char *prefix, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func((GDestroyNotify)depot_name_free);
    if (!for_each(depot, depot->names_fd, name_collect, list, error))
        return NULL;
    for (guint i = list->len; i-- > 0;)
        if (!g_str_has_prefix(((DepotName *)list->pdata[i])->name, prefix))
            g_ptr_array_remove_index(list, i);
    g_ptr_array_sort(list, by_name);
    return g_steal_pointer(&list);
}

/* ---- collection ---- */

typedef struct Collect {
    GHashTable *held; /* file names of layers */
    guint n;
    guint64 bytes;
} Collect;

static gboolean layer_collect(Depot *depot, const char *file, gpointer data, GError **error)
{
    Collect *collect = data;
    if (g_hash_table_contains(collect->held, file))
        return TRUE;
    g_autofree char *path = g_strconcat(file, "/upper", NULL);
    AUTO_FD upper = openat(depot->layers_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (upper >= 0 && flock(upper, LOCK_EX | LOCK_NB) < 0)
        return TRUE; /* in use */
    guint64 bytes = layer_bytes(depot, file);
    g_autofree char *gone = id_new("gone"); /* out of sight at once, whatever happens next */
    if (renameat(depot->layers_fd, file, depot->tmp_fd, gone) < 0)
        return error_set_errno(error, errno, "remove layer %s", file);
    collect->n++;
    collect->bytes += bytes;
    return tree_remove(depot->tmp_fd, gone, error);
}

guint depot_gc(Depot *depot, guint64 *ret_bytes, GError **error)
{
    g_autoptr(GHashTable) held = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Collect collect = {.held = held};
    AUTO_FD lock = lock_take(depot, error);
    g_autoptr(GPtrArray) names = lock < 0 ? NULL : depot_name_list(depot, "", error);
    if (names == NULL)
        return 0;
    for (guint i = 0; i < names->len; i++) {
        const DepotName *name = names->pdata[i];
        for (char **digest = name->layers; *digest != NULL; digest++)
            g_hash_table_add(held, layer_file(*digest, NULL));
    }
    if (for_each(depot, depot->tmp_fd, stage_sweep, NULL, error))
        for_each(depot, depot->layers_fd, layer_collect, &collect, error);
    *ret_bytes = collect.bytes;
    return collect.n;
}
