/*
 * Who the User of an image is, in numbers: by the image's own /etc/passwd and /etc/group.
 *
 * Invariants
 *   1. Layers are what somebody else wrote: their files are read by descriptor, beneath the layer,
 *      through no symlink, and to a limit.
 *   2. What an upper layer took away or made opaque is not there.
 *
 * Docker's rules hold: a number that passwd does not know has group 0.
 */
#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box_ids.h"
#include "sandbox/image.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define FILE_BYTES_MAX (1u << 20)
#define PASSWD_UID     2
#define PASSWD_GID     3
#define GROUP_GID      2

static int open_beneath(int layer, const char *path)
{
    return kernel_openat2(layer, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0,
                          KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS);
}

static gboolean is_opaque(int layer, const char *path)
{
    char value;
    AUTO_FD fd = open_beneath(layer, path);
    return fd >= 0 && fgetxattr(fd, "user.overlay.opaque", &value, 1) == 1;
}

/* etc/`name` of the topmost layer that has it; NULL: there is none to be read. */
static char *read_etc(const int *layers, gsize n, const char *name)
{
    g_autofree char *path = g_strconcat("etc/", name, NULL);
    for (gsize i = 0; i < n; i++) {
        struct stat st;
        AUTO_FD fd = open_beneath(layers[i], path);
        if (fd < 0 && errno == ENOENT && !is_opaque(layers[i], "etc"))
            continue;
        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
            return NULL;
        g_autoptr(GBytes) bytes = fd_read_all(fd, FILE_BYTES_MAX, NULL);
        return bytes == NULL ? NULL
                             : g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    }
    return NULL;
}

static gboolean is_number(const char *word)
{
    return word[0] != '\0' && strspn(word, "0123456789") == strlen(word);
}

/* The first row whose name is `word`, or whose number, if `word` is one; NULL: there is none. */
static GStrv find_row(const char *text, const char *word)
{
    guint column = is_number(word) ? PASSWD_UID : 0;
    g_auto(GStrv) lines = g_strsplit(text != NULL ? text : "", "\n", -1);
    for (guint i = 0; lines[i] != NULL; i++) {
        g_auto(GStrv) fields = g_strsplit(lines[i], ":", -1);
        if (g_strv_length(fields) > column && strcmp(fields[column], word) == 0)
            return g_steal_pointer(&fields);
    }
    return NULL;
}

static const char *field(GStrv row, guint column)
{
    return row != NULL && g_strv_length(row) > column ? row[column] : NULL;
}

static gboolean read_id(const char *text, guint *ret_id)
{
    guint64 id;
    if (text == NULL || !g_ascii_string_to_unsigned(text, 10, 0, BOX_ID_COUNT - 1, &id, NULL))
        return FALSE;
    *ret_id = (guint)id;
    return TRUE;
}

gboolean image_config_ids(const Image *image, const int *layers, gsize n, guint *ret_uid,
                          guint *ret_gid, GError **error)
{
    const char *user = image_config_str(image, "User");
    if (user[0] == '\0')
        return TRUE;
    g_auto(GStrv) words = g_strsplit(user, ":", 2);
    g_autofree char *passwd = read_etc(layers, n, "passwd");
    g_autofree char *groups = words[1] != NULL ? read_etc(layers, n, "group") : NULL;
    g_auto(GStrv) row = find_row(passwd, words[0]);
    g_auto(GStrv) group = words[1] != NULL ? find_row(groups, words[1]) : NULL;
    gboolean number = is_number(words[0]);
    const char *uid = number ? words[0] : field(row, PASSWD_UID);
    const char *gid = row != NULL ? field(row, PASSWD_GID) : "0";
    if (words[1] != NULL)
        gid = is_number(words[1]) ? words[1] : field(group, GROUP_GID);
    if (read_id(uid, ret_uid) && read_id(gid, ret_gid))
        return TRUE;
    return error_set(error, ASSAY_ERROR_INPUT,
                     "image %s: its user \"%s\" is not one of its /etc/passwd, or above %u; give "
                     "--uid",
                     image->name, user, BOX_ID_COUNT - 1);
}
