/* place.h - one entry of a tar becomes one thing in an open directory: made, owned, marked, timed.
 *
 * Fewest calls win: a file is made with its final mode where nothing else would change it, and keeps
 * the owner it has when that is the right one. Order: create, data, owner, xattrs, mode, times,
 * because changing the owner clears setuid bits and security.capability.
 * Source: go-archive, archive.go createTarFile.
 */
#ifndef LAY_PLACE_H
#define LAY_PLACE_H

#include "tar/tar.h"
#include "tree/lower.h"

#include <sys/types.h>

/* What holds for the whole tree. */
typedef struct lay_place {
    uid_t uid; gid_t gid;      /* what new files get by themselves */
    bool private_umask;        /* the calling thread has umask 0 for itself */
    bool userns;
    bool marks;                /* overlay's own extended attributes are set, too: they are not a tar's */
} lay_place;

typedef struct lay_meta {
    mode_t mode;               /* permission, setuid, setgid, sticky */
    uid_t uid; gid_t gid;
    struct timespec times[2];  /* access, modification: bounded as moby bounds them */
    const lay_xattr *xattrs; size_t nxattrs;
    bool inherits;             /* the directory hands down a group or an ACL: set everything, and drop what came by itself */
    bool acl;                  /* xattrs has an ACL, which changes the mode when it is set */
} lay_meta;

/* Find out about this process, and try to give the calling thread an umask of its own. */
void lay_place_init(lay_place *p, bool userns);
/* For each thread of ours. */
bool lay_place_private_umask(void);

/* False: an id or a mode no system call can take (err is set). */
lay_code lay_meta_of(lay_meta *m, const lay_tar_entry *e, lay_error *err);

/* A regular file, new (EEXIST otherwise): a descriptor for writing, or -1 and errno. */
int lay_place_create(const lay_place *p, int dir_fd, const char *name, const lay_meta *m);
/* Bytes at an offset; runs of zeros of 4 KiB and more are left as holes. *end: where the last byte
 * really written ends, if that is further than before. 0 or errno. */
int lay_place_write(int fd, const uint8_t *p, size_t n, int64_t offset, int64_t *end);
/* The size if what was written ends before it, then owner, xattrs, mode, times; fd stays open. */
lay_code lay_place_finish(const lay_place *p, int fd, int64_t end, int64_t size, const lay_meta *m, lay_error *err);

lay_code lay_place_symlink(const lay_place *p, int dir_fd, const char *name, const char *target, const lay_meta *m, lay_error *err);
/* type: S_IFCHR, S_IFBLK or S_IFIFO. *made false: skipped, as in a user namespace. */
lay_code lay_place_node(const lay_place *p, int dir_fd, const char *name, mode_t type, dev_t dev, const lay_meta *m, bool *made, lay_error *err);
/* dir_fd/name is a directory; is_new: made just now with mkdirat and this mode; else it loses the xattrs that m has not.
 * Times are not set. */
lay_code lay_place_directory(const lay_place *p, int dir_fd, const char *name, bool is_new, const lay_meta *m, lay_error *err);
/* dir_fd/name is a hard link to an existing thing. *whiteout: to a mark, which has none of this. */
lay_code lay_place_link_meta(const lay_place *p, int dir_fd, const char *name, const lay_meta *m, bool *whiteout, lay_error *err);
/* Give the directory `to`, which has no xattrs, the owner, xattrs, mode and times of one below. */
lay_code lay_place_as(int to, const lay_lower *lower, lay_lower_dir from, lay_error *err);

#endif
