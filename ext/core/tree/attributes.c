/* attributes.c - a thing on the disk enters; the names of its extended attributes, their values, and the mode that it
 * has without its ACL leave.
 *
 * One list of the names is one system call, and mostly says that there is nothing to read.
 * Source: fs/overlayfs/xattrs.c (which are its own), fs/posix_acl.c (ACL and mode), include/uapi/linux/posix_acl_xattr.h.
 */
#include "tree/attributes.h"

#include "base/grow.h"
#include "tree/tree.h"

#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#define LIST_SIZE 1024
#define VALUE_SIZE 256

#define FD_PATH_SIZE 40

static const char *fd_path(const lay_bearer *thing, char path[FD_PATH_SIZE])
{
    snprintf(path, FD_PATH_SIZE, "/proc/self/fd/%d", thing->fd);
    return path;
}

ssize_t lay_attribute_get(const lay_bearer *thing, const char *name, void *buf, size_t size)
{
    char own[FD_PATH_SIZE];
    ssize_t n;
    if (thing->ask != NULL)
        return thing->ask(thing, name, buf, size);
    if (thing->fd < 0)
        return lay_tree_getxattr(thing->dir_fd, thing->name, name, buf, size);
    if (thing->by_path)
        n = name ? getxattr(fd_path(thing, own), name, buf, size) : listxattr(fd_path(thing, own), buf, size);
    else
        n = name ? fgetxattr(thing->fd, name, buf, size) : flistxattr(thing->fd, buf, size);
    if (n < 0 && thing->by_path && errno == ENOENT)
        return lay_tree_getxattr(thing->dir_fd, thing->name, name, buf, size);
    if (n >= 0)
        errno = 0;
    return n < 0 && (errno == ENODATA || errno == EOPNOTSUPP) ? 0 : n;
}

lay_code lay_attributes_list(lay_attributes *a, const lay_bearer *thing, lay_error *err)
{
    a->len = a->count = a->values_len = 0;
    for (size_t want = LIST_SIZE;; want = a->cap * 4) {
        if (lay_reserve(&a->list, &a->cap, want, 1, err))
            return err->code;
        ssize_t n = lay_attribute_get(thing, NULL, a->list, a->cap);
        if (n < 0 && errno == ERANGE && a->cap < (1u << 20))
            continue;
        if (n < 0)
            return lay_fail_os(err, errno, NULL, "cannot list the extended attributes");
        a->len = (size_t)n;
        return LAY_OK;
    }
}

bool lay_attributes_has(const lay_attributes *a, const char *name)
{
    for (const char *at = a->list; at < a->list + a->len; at += strlen(at) + 1)
        if (strcmp(at, name) == 0)
            return true;
    return false;
}

lay_attribute lay_attribute_kind(const char *name, bool userxattr)
{
    if (strcmp(name, LAY_ACL_ACCESS) == 0 || strcmp(name, LAY_ACL_DEFAULT) == 0)
        return LAY_ATTRIBUTE_ACL;
    if (lay_begins(name, userxattr ? "user.overlay." : "trusted.overlay."))
        return lay_begins(strchr(name, '.') + 1, "overlay.overlay.") ? LAY_ATTRIBUTE_FOREIGN : LAY_ATTRIBUTE_OWN;
    if (lay_attribute_is_overlays(name))
        return LAY_ATTRIBUTE_FOREIGN;
    if (!lay_begins(name, "user.") && !lay_begins(name, "trusted.") && !lay_begins(name, "security."))
        return LAY_ATTRIBUTE_OTHER;
    return strchr(name, '=') == NULL ? LAY_ATTRIBUTE_KEPT : LAY_ATTRIBUTE_FOREIGN;
}

bool lay_attribute_is_overlays(const char *name) { return lay_begins(name, "trusted.overlay.") || lay_begins(name, "user.overlay."); }

lay_code lay_attributes_value(lay_attributes *a, const lay_bearer *thing, const char *name, ssize_t *len, lay_error *err)
{
    for (size_t room = VALUE_SIZE;; room *= 4) {
        if (lay_reserve(&a->values, &a->values_cap, a->values_len + room, 1, err))
            return err->code;
        ssize_t n = lay_attribute_get(thing, name, a->values + a->values_len, a->values_cap - a->values_len);
        if (n < 0 && errno == ERANGE && room < (1u << 20))
            continue;
        if (n < 0)
            return lay_fail_os(err, errno, NULL, "cannot read an extended attribute");
        *len = n == 0 && errno != 0 ? -1 : n;
        a->values_len += (size_t)n;
        return LAY_OK;
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const lay_xattr *)a)->name, ((const lay_xattr *)b)->name);
}

static bool goes_into_a_tar(const char *name, bool userxattr)
{
    lay_attribute kind = lay_attribute_kind(name, userxattr);
    return kind == LAY_ATTRIBUTE_ACL || kind == LAY_ATTRIBUTE_KEPT;
}

static bool goes_into_a_copy(const char *name, bool userxattr)
{
    static const char *const its_own[] = { "origin", "upper", "index", "nlink", "uuid" };
    const char *prefix = userxattr ? "user.overlay." : "trusted.overlay.";
    if (!lay_begins(name, prefix))
        return true;
    for (size_t i = 0; i < sizeof its_own / sizeof *its_own; i++)
        if (strcmp(name + strlen(prefix), its_own[i]) == 0)
            return false;
    return true;
}

typedef bool chooser(const char *name, bool userxattr);

static lay_code read_chosen(lay_attributes *a, const lay_bearer *thing, chooser *chosen, bool userxattr, lay_error *err)
{
    a->count = a->values_len = 0;
    for (const char *at = a->list; at < a->list + a->len; at += strlen(at) + 1) {
        if (!chosen(at, userxattr))
            continue;
        ssize_t len;
        if (lay_grow(&a->xattrs, &a->xattrs_cap, a->count, sizeof *a->xattrs, err) || lay_attributes_value(a, thing, at, &len, err))
            return err->code;
        if (len >= 0)
            a->xattrs[a->count++] = (lay_xattr){ .name = at, .len = (size_t)len };
    }
    const uint8_t *value = a->values;       /* where it stays now */
    for (size_t i = 0; i < a->count; i++) {
        a->xattrs[i].value = value;
        value += a->xattrs[i].len;
    }
    if (a->count > 1)
        qsort(a->xattrs, a->count, sizeof *a->xattrs, by_name);
    return LAY_OK;
}

lay_code lay_attributes_read(lay_attributes *a, const lay_bearer *thing, bool userxattr, lay_error *err)
{
    return read_chosen(a, thing, goes_into_a_tar, userxattr, err);
}

lay_code lay_attributes_read_all(lay_attributes *a, const lay_bearer *thing, bool userxattr, lay_error *err)
{
    return read_chosen(a, thing, goes_into_a_copy, userxattr, err);
}

/* ---- ACLs: a version, then entries of a tag, rights and an id, little endian ---- */

#define ACL_VERSION 2u
#define ACL_ENTRY 8u
#define ACL_GROUP_OBJ 0x04u
#define ACL_MASK 0x10u

static unsigned u16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }

/* What is no ACL lets the group have nothing. */
static unsigned group_rights(const uint8_t *acl, size_t n)
{
    unsigned group = 0, mask = 7;
    if (n < 4 || u16(acl) != ACL_VERSION || u16(acl + 2) != 0)
        return 0;
    for (size_t at = 4; at + ACL_ENTRY <= n; at += ACL_ENTRY) {
        if (u16(acl + at) == ACL_GROUP_OBJ)
            group = u16(acl + at + 2);
        if (u16(acl + at) == ACL_MASK)
            mask = u16(acl + at + 2);
    }
    return group & mask & 7;
}

lay_code lay_mode_without_acl(const lay_bearer *thing, mode_t *mode, lay_error *err)
{
    lay_attributes a = { 0 };
    ssize_t len = -1;
    lay_code code = lay_attributes_value(&a, thing, LAY_ACL_ACCESS, &len, err);
    if (code == LAY_OK && len >= 0)
        *mode = (*mode & ~(mode_t)070) | (mode_t)(group_rights(a.values, (size_t)len) << 3);
    lay_attributes_free(&a);
    return code;
}

void lay_attributes_free(lay_attributes *a)
{
    free(a->list);
    free(a->xattrs);
    free(a->values);
    *a = (lay_attributes){ 0 };
}
