/*
 * assay-unpack ARCHIVE ENTRIES BYTES: unpacks ARCHIVE into the working directory, inside a box.
 *
 * Standard output: records, each ended by a NUL: the notes of unpack.h as KIND UID:GID:PATH, then
 * "D" ENTRIES:BYTES:DIFF_ID. Exit status: 0 done, 2 the archive is bad, 3 a limit, 1 else; the
 * reason is on standard error.
 */
#include "sandbox/unpack.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

static void put_note(UnpackNote kind, const char *path, guint uid, guint gid, gpointer data)
{
    (void)data;
    printf("%c%u:%u:%s%c", (char)kind, uid, gid, path, '\0');
}

static gboolean run(char **argv, GError **error)
{
    UnpackLimits limits;
    UnpackSums sums;
    if (!g_ascii_string_to_unsigned(argv[2], 10, 0, G_MAXUINT32, &limits.entries_max, error) ||
        !g_ascii_string_to_unsigned(argv[3], 10, 0, G_MAXINT64, &limits.bytes_max, error))
        return FALSE;
    AUTO_FD in = open(argv[1], O_RDONLY | O_CLOEXEC);
    AUTO_FD out = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (in < 0 || out < 0)
        return error_set_errno(error, errno, "open %s", in < 0 ? argv[1] : "the tree");
    if (!unpack_tar(in, out, &limits, put_note, NULL, &sums, error))
        return FALSE;
    printf("D%" G_GUINT64_FORMAT ":%" G_GUINT64_FORMAT ":%s%c", sums.entries, sums.bytes,
           sums.diff_id, '\0');
    return fflush(stdout) == 0 || error_set_errno(error, errno, "write the list");
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc != 4 || run(argv, &error))
        return argc != 4;
    fprintf(stderr, "%s\n", error->message);
    if (g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_INPUT))
        return 2;
    return g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT) ? 3 : 1;
}
