/*
 * The bytes between library and keeper.
 *
 * Shape: a header (magic, version), then fields in a fixed order: little integers as they lie in
 * memory (both ends are the same machine and the same build), strings and blobs with a length and,
 * for strings, a NUL. This file is compiled into both ends; it uses no GLib and allocates nothing.
 *
 * Invariants:
 *   1. A reader never reads past `end`, whatever the bytes say; after the first fault every read
 *      gives zero and `bad` stays set.
 *   2. Every count is compared with its named maximum before it is used.
 *   3. A request with bytes left over is malformed.
 *
 * Not here: moving the bytes (launch.c, keeper.c), what the fields do.
 */
#include "sandbox/spec.h"

#include <string.h>

typedef struct Reader {
    const uint8_t *at, *end;
    bool bad;
} Reader;

static void put_u32(SpecWriter *writer, uint32_t value)
{
    writer->put(writer->ctx, &value, sizeof value);
}

static void put_u64(SpecWriter *writer, uint64_t value)
{
    writer->put(writer->ctx, &value, sizeof value);
}

static void put_blob(SpecWriter *writer, const void *data, uint32_t len)
{
    put_u32(writer, len);
    if (len > 0)
        writer->put(writer->ctx, data, len);
}

void spec_put_str(SpecWriter *writer, const char *text)
{
    put_blob(writer, text, (uint32_t)strlen(text) + 1);
}

static void put_head(SpecWriter *writer, uint32_t magic)
{
    put_u32(writer, magic);
    put_u32(writer, SPEC_VERSION);
}

static void put_map(SpecWriter *writer, const SpecMap *map)
{
    put_u32(writer, map->n);
    writer->put(writer->ctx, map->lines, map->n * sizeof map->lines[0]);
}

void spec_put_open(SpecWriter *writer, const SpecOpen *open)
{
    put_head(writer, SPEC_MAGIC_OPEN);
    put_u32(writer, open->flags);
    put_u32(writer, open->uid);
    put_u32(writer, open->gid);
    put_u32(writer, open->n_root);
    put_u32(writer, open->n_layers);
    put_u32(writer, open->n_work);
    put_u32(writer, open->n_mounts);
    put_u32(writer, open->n_gens);
    spec_put_str(writer, open->work_path);
    spec_put_str(writer, open->hostname);
    for (uint32_t i = 0; i < open->n_mounts; i++)
        spec_put_str(writer, open->mount_paths[i]);
    put_map(writer, &open->uids);
    put_map(writer, &open->gids);
    put_blob(writer, &open->limits, sizeof open->limits);
    put_blob(writer, open->filter, open->filter_len);
}

void spec_put_idmap(SpecWriter *writer, const SpecMap *uids, const SpecMap *gids)
{
    put_head(writer, SPEC_MAGIC_IDMAP);
    put_map(writer, uids);
    put_map(writer, gids);
}

void spec_put_tree(SpecWriter *writer, const SpecTree *tree)
{
    put_head(writer, SPEC_MAGIC_TREE);
    put_u32(writer, tree->flags);
    put_u32(writer, tree->n_gens);
    put_u64(writer, tree->disk_bytes);
    put_u64(writer, tree->inodes);
}

void spec_put_copy(SpecWriter *writer, uint32_t n_gens)
{
    put_head(writer, SPEC_MAGIC_COPY);
    put_u32(writer, n_gens);
}

void spec_put_order(SpecWriter *writer, SpecOrder order)
{
    put_head(writer, SPEC_MAGIC_ORDER);
    put_u32(writer, order);
}

void spec_put_exec(SpecWriter *writer, const SpecExec *exec)
{
    put_head(writer, SPEC_MAGIC_EXEC);
    put_u32(writer, exec->flags);
    put_u32(writer, exec->n_argv);
    put_u32(writer, exec->n_envp);
    put_u32(writer, exec->n_files);
    put_u32(writer, exec->rows);
    put_u32(writer, exec->cols);
    spec_put_str(writer, exec->cwd);
}

void spec_put_file(SpecWriter *writer, const SpecFile *file)
{
    spec_put_str(writer, file->path);
    put_u32(writer, file->mode);
    put_blob(writer, file->data, file->len);
}

static const uint8_t *get_bytes(Reader *reader, size_t len)
{
    if (reader->bad || (size_t)(reader->end - reader->at) < len) {
        reader->bad = true;
        return NULL;
    }
    const uint8_t *at = reader->at;
    reader->at += len;
    return at;
}

static uint32_t get_u32(Reader *reader)
{
    uint32_t value = 0;
    const uint8_t *at = get_bytes(reader, sizeof value);
    if (at != NULL)
        memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t get_u64(Reader *reader)
{
    uint64_t value = 0;
    const uint8_t *at = get_bytes(reader, sizeof value);
    if (at != NULL)
        memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t get_u32_max(Reader *reader, uint32_t max)
{
    uint32_t value = get_u32(reader);
    if (value <= max)
        return value;
    reader->bad = true;
    return 0;
}

static const char *get_str(Reader *reader)
{
    uint32_t len = get_u32(reader);
    const uint8_t *at = get_bytes(reader, len);
    if (at != NULL && len > 0 && memchr(at, 0, len) == at + len - 1)
        return (const char *)at;
    reader->bad = true;
    return "";
}

static const char *get_path(Reader *reader)
{
    const char *path = get_str(reader);
    if (!reader->bad && !spec_path_ok(path))
        reader->bad = true;
    return path;
}

static void get_map(Reader *reader, SpecMap *ret_map)
{
    ret_map->n = get_u32_max(reader, SPEC_MAPS_MAX);
    const uint8_t *at = get_bytes(reader, ret_map->n * sizeof ret_map->lines[0]);
    if (at != NULL)
        memcpy(ret_map->lines, at, ret_map->n * sizeof ret_map->lines[0]);
}

static Reader reader_start(const void *bytes, size_t len, uint32_t magic)
{
    Reader reader = {.at = bytes, .end = (const uint8_t *)bytes + len};
    if (len > SPEC_BYTES_MAX || get_u32(&reader) != magic || get_u32(&reader) != SPEC_VERSION)
        reader.bad = true;
    return reader;
}

static bool reader_done(const Reader *reader)
{
    return !reader->bad && reader->at == reader->end;
}

bool spec_get_open(const void *bytes, size_t len, SpecOpen *ret_open)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_OPEN);
    memset(ret_open, 0, sizeof *ret_open);
    ret_open->flags = get_u32(&reader);
    ret_open->uid = get_u32_max(&reader, 65532);
    ret_open->gid = get_u32_max(&reader, 65532);
    ret_open->n_root = get_u32_max(&reader, SPEC_LAYERS_MAX);
    ret_open->n_layers = get_u32_max(&reader, SPEC_LAYERS_MAX);
    ret_open->n_work = get_u32_max(&reader, SPEC_LAYERS_MAX);
    ret_open->n_mounts = get_u32_max(&reader, SPEC_MOUNTS_MAX);
    ret_open->n_gens = get_u32_max(&reader, SPEC_GENS_MAX);
    ret_open->work_path = get_path(&reader);
    ret_open->hostname = get_str(&reader);
    for (uint32_t i = 0; i < ret_open->n_mounts; i++)
        ret_open->mount_paths[i] = get_path(&reader);
    get_map(&reader, &ret_open->uids);
    get_map(&reader, &ret_open->gids);

    if (get_u32(&reader) != sizeof ret_open->limits)
        reader.bad = true;
    const uint8_t *limits = get_bytes(&reader, sizeof ret_open->limits);
    if (limits != NULL)
        memcpy(&ret_open->limits, limits, sizeof ret_open->limits);

    ret_open->filter_len = get_u32_max(&reader, SPEC_FILTER_MAX * 8);
    ret_open->filter = get_bytes(&reader, ret_open->filter_len);
    return reader_done(&reader) && ret_open->n_root > 0 && ret_open->filter_len % 8 == 0;
}

bool spec_get_idmap(const void *bytes, size_t len, SpecMap *ret_uids, SpecMap *ret_gids)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_IDMAP);
    get_map(&reader, ret_uids);
    get_map(&reader, ret_gids);
    return reader_done(&reader);
}

bool spec_get_tree(const void *bytes, size_t len, SpecTree *ret_tree)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_TREE);
    ret_tree->flags = get_u32(&reader);
    ret_tree->n_gens = get_u32_max(&reader, SPEC_GENS_MAX);
    ret_tree->disk_bytes = get_u64(&reader);
    ret_tree->inodes = get_u64(&reader);
    return reader_done(&reader);
}

bool spec_get_copy(const void *bytes, size_t len, uint32_t *ret_n_gens)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_COPY);
    *ret_n_gens = get_u32_max(&reader, SPEC_GENS_MAX);
    return reader_done(&reader);
}

bool spec_get_order(const void *bytes, size_t len, SpecOrder *ret_order)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_ORDER);
    *ret_order = (SpecOrder)get_u32_max(&reader, SPEC_ORDER_THAW);
    return reader_done(&reader) && *ret_order != SPEC_ORDER_NONE;
}

bool spec_next_str(SpecExec *exec, const char **ret_text)
{
    Reader reader = {.at = exec->rest, .end = exec->end};
    *ret_text = get_str(&reader);
    exec->rest = reader.at;
    return !reader.bad;
}

bool spec_next_file(SpecExec *exec, SpecFile *ret_file)
{
    Reader reader = {.at = exec->rest, .end = exec->end};
    ret_file->path = get_path(&reader);
    ret_file->mode = get_u32_max(&reader, 0777);
    ret_file->len = get_u32(&reader);
    ret_file->data = get_bytes(&reader, ret_file->len);
    exec->rest = reader.at;
    return !reader.bad;
}

bool spec_get_exec(const void *bytes, size_t len, SpecExec *ret_exec)
{
    Reader reader = reader_start(bytes, len, SPEC_MAGIC_EXEC);
    memset(ret_exec, 0, sizeof *ret_exec);
    ret_exec->flags = get_u32(&reader);
    ret_exec->n_argv = get_u32_max(&reader, SPEC_ARGV_MAX);
    ret_exec->n_envp = get_u32_max(&reader, SPEC_ENVP_MAX);
    ret_exec->n_files = get_u32_max(&reader, SPEC_FILES_MAX);
    ret_exec->rows = get_u32_max(&reader, 0xffff);
    ret_exec->cols = get_u32_max(&reader, 0xffff);
    ret_exec->cwd = get_path(&reader);
    ret_exec->rest = reader.at;
    ret_exec->end = reader.end;
    if (reader.bad || ret_exec->n_argv == 0)
        return false;

    SpecExec walk = *ret_exec;
    const char *text;
    for (uint32_t i = 0; i < walk.n_argv + walk.n_envp; i++)
        if (!spec_next_str(&walk, &text))
            return false;
    SpecFile file;
    for (uint32_t i = 0; i < walk.n_files; i++)
        if (!spec_next_file(&walk, &file))
            return false;
    return walk.rest == walk.end;
}

bool spec_reply_ok(SpecReply *reply, size_t len)
{
    if (len != sizeof *reply || reply->magic != SPEC_MAGIC_REPLY || reply->version != SPEC_VERSION)
        return false;
    reply->what[SPEC_WHAT_MAX - 1] = '\0';
    return reply->kind > SPEC_REPLY_NONE && reply->kind <= SPEC_REPLY_LISTENER &&
           reply->fd_mask < 1u << SPEC_FDS_OF_REPLY && reply->start_failed <= SPEC_START_OURS;
}

bool spec_path_ok(const char *path)
{
    size_t len = strlen(path);
    if (len == 0 || len >= SPEC_PATH_MAX || path[0] != '/')
        return false;
    if (len == 1)
        return true;

    for (const char *part = path; *part != '\0';) {
        part++; /* the slash */
        size_t n = strcspn(part, "/");
        if (n == 0 || n > 255 || (n == 1 && part[0] == '.') ||
            (n == 2 && part[0] == '.' && part[1] == '.'))
            return false;
        part += n;
    }
    return true;
}
