/* attributes.h - the extended attributes of one thing on the disk: which it has, and what they mean for a tar.
 *
 *   overlay's own   trusted.overlay.* (user.overlay.* in a user namespace): marks, told by other means
 *   ACLs            system.posix_acl_access, system.posix_acl_default: the group's bits of the mode are then their mask
 *   kept            user.*, trusted.*, security.*: set by a user or a program
 *   others          a file system's own, or what the host's policy sets
 */
#ifndef LAY_ATTRIBUTES_H
#define LAY_ATTRIBUTES_H

#include "tar/tar.h"

#include <sys/stat.h>

#define LAY_CAPABILITY "security.capability"
#define LAY_ACL_ACCESS "system.posix_acl_access"
#define LAY_ACL_DEFAULT "system.posix_acl_default"

typedef enum lay_attribute { LAY_ATTRIBUTE_OWN, LAY_ATTRIBUTE_ACL, LAY_ATTRIBUTE_KEPT, LAY_ATTRIBUTE_FOREIGN, LAY_ATTRIBUTE_OTHER } lay_attribute;

/* What is asked: fd, if it is not negative, else name in dir_fd; no link is followed. by_path: fd is O_PATH, and is
 * asked by way of /proc; where there is none, by its name. ask, if it is not NULL: what lies in no directory answers
 * itself, as lay_attribute_get does. */
typedef struct lay_bearer {
    int fd, dir_fd; const char *name; bool by_path;
    ssize_t (*ask)(const struct lay_bearer *thing, const char *xattr, void *buf, size_t size);
} lay_bearer;

/* Names of one thing's attributes, each with its NUL; and values that were read. */
typedef struct lay_attributes {
    char *list; size_t len, cap;
    lay_xattr *xattrs; size_t count, xattrs_cap;      /* by name, in byte order; they point into list and values */
    uint8_t *values; size_t values_len, values_cap;
} lay_attributes;

/* Takes the names; what cannot have any has none. LAY_E_OS without a path: errno says why. */
lay_code lay_attributes_list(lay_attributes *a, const lay_bearer *thing, lay_error *err);
bool lay_attributes_has(const lay_attributes *a, const char *name);
/* FOREIGN: marks of an overlay of the other kind, and of one inside of this one; and a name that no tar can hold. */
lay_attribute lay_attribute_kind(const char *name, bool userxattr);
/* A mark of overlay's, of either kind. Such are made from whiteout entries alone: a tar that could set them could make a
 * directory show what lies elsewhere in the layers below. */
bool lay_attribute_is_overlays(const char *name);
/* One value: its bytes; 0 and errno ENODATA when it is not there; -1 and errno. name NULL: the names of all. */
ssize_t lay_attribute_get(const lay_bearer *thing, const char *name, void *buf, size_t size);
/* One value, to the end of values; *len: its bytes, or -1 when it is not there. */
lay_code lay_attributes_value(lay_attributes *a, const lay_bearer *thing, const char *name, ssize_t *len, lay_error *err);
/* Reads the values of the ACLs and of what is kept into xattrs. What is gone meanwhile is left out. */
lay_code lay_attributes_read(lay_attributes *a, const lay_bearer *thing, bool userxattr, lay_error *err);
/* The same of all that there are, marks of overlays too, for a copy of the thing: but for what says where the overlay of
 * this kind had it from and how it counts it (origin, upper, index, nlink, uuid), which holds for the thing itself alone. */
lay_code lay_attributes_read_all(lay_attributes *a, const lay_bearer *thing, bool userxattr, lay_error *err);
/* The mode without the ACL that a thing has: the group's bits are its own again, as far as the mask let it have them. */
lay_code lay_mode_without_acl(const lay_bearer *thing, mode_t *mode, lay_error *err);
void lay_attributes_free(lay_attributes *a);

#endif
