/*
 * A layer archive into a stage of the store: the box unpacks, the host side adds what a box must
 * not do itself: owners, whiteouts, opaque marks.
 *
 * Invariants:
 *   1. The archive is read by nobody but assay-unpack in a box without network; of what that says,
 *      nothing is believed but numbers and paths, and paths are walked beneath the tree, through
 *      no symlink.
 *   2. The host side touches the tree when the box is gone.
 *   3. Owners stay within the store's range.
 *
 * Not here: the archive itself (unpack.c).
 */
#include "sandbox/image.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "sandbox/box.h"
#include "sandbox/box_ids.h"
#include "sandbox/kernel.h"
#include "sandbox/launch.h"
#include "sandbox/unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define PROGRAM           "/tmp/assay-unpack"
#define PROGRAM_BYTES_MAX (64u << 20)
#define LIST_BYTES_MAX    (256u << 20)
#define UNPACK_WALL_MS    (3600u * 1000)
#define UNPACK_MEM        (1ull << 30)
#define BENEATH           (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS)

void image_unpacked_clear(ImageUnpacked *unpacked)
{
    g_clear_pointer(&unpacked->diff_id, g_free);
}

int image_stage_in(DepotStage *stage, GError **error)
{
    return tree_open_dir(stage->dir_fd, "in", 0755, error);
}

static void take_output(gpointer data, gboolean is_err, const void *bytes, gsize len)
{
    GByteArray *list = data;
    if (!is_err && list->len + len <= LIST_BYTES_MAX)
        g_byte_array_append(list, bytes, (guint)len);
}

/* ---- what the box's list asks for ---- */

static int open_beneath(int tree_fd, const char *path, int flags)
{
    return kernel_openat2(tree_fd, path[0] == '\0' ? "." : path, (guint64)flags | O_CLOEXEC, 0,
                          BENEATH);
}

static gboolean set_opaque(int dir_fd)
{
    return fsetxattr(dir_fd, "user.overlay.opaque", "y", 1, 0) == 0;
}

/* NAME in `dir_fd` was made by the same layer: it replaces what is below, so that a directory of
 * that name is opaque and a file needs nothing. */
static gboolean replace_below(int dir_fd, const char *name)
{
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? errno == ENOTDIR || errno == ELOOP : set_opaque(fd);
}

static gboolean make_whiteout(int tree_fd, const char *path)
{
    const char *slash = strrchr(path, '/');
    g_autofree char *above = slash != NULL ? g_strndup(path, (gsize)(slash - path)) : g_strdup("");
    const char *name = slash != NULL ? slash + 1 : path;
    AUTO_FD dir = open_beneath(tree_fd, above, O_RDONLY | O_DIRECTORY);
    struct stat st;
    if (dir < 0 || fstat(dir, &st) < 0)
        return FALSE;
    int r = mknodat(dir, name, S_IFCHR | 0600, makedev(0, 0));
    if (r < 0 && errno == EACCES && fchmod(dir, 0700) == 0) {
        r = mknodat(dir, name, S_IFCHR | 0600, makedev(0, 0));
        fchmod(dir, st.st_mode & 07777);
    }
    gboolean ok = r == 0 || (errno == EEXIST && replace_below(dir, name));
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    futimens(dir, times);
    return ok;
}

static gboolean make_opaque(int tree_fd, const char *path)
{
    AUTO_FD dir = open_beneath(tree_fd, path, O_RDONLY | O_DIRECTORY);
    return dir >= 0 && set_opaque(dir);
}

static gboolean set_owner(int tree_fd, const char *path, guint64 uid, guint64 gid)
{
    if (box_store_uid() != BOX_ID_BASE)
        return TRUE; /* an ordinary user's store has one owner */
    AUTO_FD at = open_beneath(tree_fd, path, O_PATH | O_NOFOLLOW);
    return at >= 0 && uid < BOX_ID_COUNT && gid < BOX_ID_COUNT &&
           fchownat(at, "", BOX_ID_BASE + (guint)uid, BOX_ID_BASE + (guint)gid, AT_EMPTY_PATH) == 0;
}

/* "UID:GID:PATH"; or "ENTRIES:BYTES:DIFF_ID". */
static gboolean split_record(const char *text, guint64 numbers[2], const char **ret_rest)
{
    for (int i = 0; i < 2; i++) {
        char *end = NULL;
        numbers[i] = g_ascii_strtoull(text, &end, 10);
        if (end == text || *end != ':')
            return FALSE;
        text = end + 1;
    }
    *ret_rest = text;
    return TRUE;
}

static gboolean apply_record(int tree_fd, const char *record, ImageUnpacked *ret, GError **error)
{
    const char *path;
    guint64 numbers[2];
    gboolean ok = FALSE;
    if (record[0] == '\0' || !split_record(record + 1, numbers, &path))
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-unpack wrote a record nobody knows");
    errno = EINVAL;
    switch ((UnpackNote)record[0]) {
    case UNPACK_WHITEOUT:
        ok = path[0] != '\0' && make_whiteout(tree_fd, path);
        break;
    case UNPACK_OPAQUE:
        ok = make_opaque(tree_fd, path);
        break;
    case UNPACK_OWNER:
        ok = set_owner(tree_fd, path, numbers[0], numbers[1]);
        break;
    case UNPACK_SKIPPED:
        ret->skipped++;
        ok = TRUE;
        break;
    default:
        if (record[0] != 'D')
            break;
        ret->entries = numbers[0];
        ret->bytes = numbers[1];
        g_free(ret->diff_id);
        ret->diff_id = g_strconcat("sha256:", path, NULL);
        ok = depot_digest_ok(ret->diff_id);
    }
    return ok || error_set_errno(error, errno, "finish the layer: %c %s", record[0], path);
}

static gboolean apply_list(DepotStage *stage, const GByteArray *list, ImageUnpacked *ret,
                           GError **error)
{
    AUTO_FD tree = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (tree < 0)
        return error_set_errno(error, errno, "open the layer's tree");
    for (gsize at = 0; at < list->len;) {
        const char *record = (const char *)list->data + at;
        gsize len = strnlen(record, list->len - at);
        if (at + len == list->len)
            return error_set(error, ASSAY_ERROR_LIMIT,
                             "its list of owners and whiteouts is longer "
                             "than %u bytes",
                             LIST_BYTES_MAX);
        if (!apply_record(tree, record, ret, error))
            return FALSE;
        at += len + 1;
    }
    return ret->diff_id != NULL ||
           error_set(error, ASSAY_ERROR_SYSTEM, "assay-unpack wrote no sums");
}

/* ---- the box ---- */

/* What went wrong, in the words of assay-unpack. */
static gboolean set_unpack_error(const BoxResult *result, GError **error)
{
    gsize len = 0;
    const char *text = result->err == NULL ? NULL : g_bytes_get_data(result->err, &len);
    g_autofree char *said = g_utf8_make_valid(text != NULL ? text : "", (gssize)len);
    g_strstrip(said);
    if (result->outcome == BOX_EXITED)
        return error_set(error,
                         result->exit_code == 2   ? ASSAY_ERROR_INPUT
                         : result->exit_code == 3 ? ASSAY_ERROR_LIMIT
                                                  : ASSAY_ERROR_SYSTEM,
                         "%s", said);
    if (result->outcome == BOX_CANCELLED)
        return error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
    return error_set(error,
                     result->outcome == BOX_START_ERROR ? ASSAY_ERROR_SYSTEM : ASSAY_ERROR_LIMIT,
                     "assay-unpack %s", box_outcome_str(result->outcome));
}

static gboolean run_box(Box *box, guint64 bytes_max, const ImageOptions *options, GByteArray *list,
                        GError **error)
{
    AUTO_FD program_fd = launch_open_program("assay-unpack", error);
    g_autoptr(GBytes) program =
        program_fd < 0 ? NULL : fd_read_all(program_fd, PROGRAM_BYTES_MAX, error);
    if (program == NULL)
        return FALSE;
    g_autofree char *entries = g_strdup_printf("%u", UNPACK_ENTRIES_MAX);
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, bytes_max);
    const char *argv[] = {PROGRAM, "/in/blob", entries, bytes, NULL};
    const BoxFile file = {PROGRAM, g_bytes_get_data(program, NULL), g_bytes_get_size(program),
                          0755};
    const BoxCommand command = {.argv = argv,
                                .files = &file,
                                .n_files = 1,
                                .cancel_fd = options->cancel_fd,
                                .on_output = take_output,
                                .on_output_data = list};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, error))
        return FALSE;
    return (result.outcome == BOX_EXITED && result.exit_code == 0) ||
           set_unpack_error(&result, error);
}

gboolean image_unpack(DepotStage *stage, int in_fd, const ImageOptions *options,
                      ImageUnpacked *ret_unpacked, GError **error)
{
    const BoxMount in = {in_fd, "/in"};
    BoxSpec spec = {.work_path = "/layer",
                    .slot = options->slot,
                    .limits = box_limits_default(),
                    .root_read_only = TRUE,
                    .work_upper_fd = stage->dir_fd,
                    .mounts = &in,
                    .n_mounts = 1};
    spec.limits.wall_ms = UNPACK_WALL_MS;
    spec.limits.cpu_ms = spec.limits.idle_ms = spec.limits.file_bytes = 0;
    spec.limits.mem_bytes = UNPACK_MEM;
    spec.limits.tmp_bytes = PROGRAM_BYTES_MAX;
    spec.limits.output_bytes_kill = LIST_BYTES_MAX;
    g_autoptr(GByteArray) list = g_byte_array_new();
    guint64 left = MIN(depot_bytes_left(stage->depot), (guint64)IMAGE_BLOB_BYTES);

    g_autoptr(Box) box = box_open(&spec, error);
    if (box == NULL) {
        g_prefix_error(error, "layers are unpacked in a box: ");
        return FALSE;
    }
    if (!run_box(box, left, options, list, error))
        return FALSE;
    g_clear_pointer(&box, box_close); /* waits: nobody else writes to the tree any more */
    return apply_list(stage, list, ret_unpacked, error);
}
