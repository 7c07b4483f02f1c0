/* lay.h - the public face of the layer core, read top to bottom in the order of the data.
 *
 * Bytes of a layer tar enter through lay_apply and become files, a DiffID and a tar-split record.
 * Bytes of a tar leave through lay_source: the first tar again (assemble, range) or a fresh one (export).
 * lay_changes says how two trees differ; lay_check says whether a stored layer still is what it was;
 * lay_listing says what is in it.
 *
 * Nothing here knows Python, prints, exits, or touches the process's umask or directory.
 * Every function that can fail takes a lay_error last and returns its code.
 * Descriptors are borrowed for the call; what a handle keeps, it duplicates when it is opened.
 * A handle has one user at a time.
 */
#ifndef LAY_H
#define LAY_H

#include <stddef.h>
#include <stdint.h>

/* ---- errors ------------------------------------------------------------------------------- */

typedef enum lay_code {
    LAY_OK = 0,
    LAY_E_OS,          /* a system call failed: sys_errno, path */
    LAY_E_NOMEM,       /* an allocation failed */
    LAY_E_TAR,         /* not a tar at this byte: offset, path = the entry, if known */
    LAY_E_TRUNCATED,   /* the stream ended inside an entry: offset */
    LAY_E_LIMIT,       /* more than a limit allows: offset, path = the entry, if known; text ends with the option */
    LAY_E_BREAKOUT,    /* a name, link or whiteout that leaves the root: path */
    LAY_E_SPLIT,       /* the recorded tar-split cannot be read */
    LAY_E_MISMATCH,    /* stored files no longer give the recorded bytes: path, if known */
    LAY_E_UNSUPPORTED, /* the kernel, the file system or this build cannot */
    LAY_E_BUSY,        /* the handle is in use by another thread */
    LAY_E_STATE,       /* the call is not allowed now */
    LAY_E_IMAGE,       /* not an EROFS image that can be read: the text names the field; path = its file, if known */
    LAY_CODE_COUNT
} lay_code;

#define LAY_ERROR_TEXT 512
#define LAY_ERROR_PATH 4097

/* A plain struct on the caller's stack: failing allocates nothing. The functions of this header clear it
 * when they begin. Each text ends with a NUL. */
typedef struct lay_error {
    lay_code code;
    int sys_errno;     /* of LAY_E_OS, else 0 */
    int64_t offset;    /* bytes from the start of the uncompressed tar, or -1 */
    char path[LAY_ERROR_PATH];
    char text[LAY_ERROR_TEXT];
    char target[LAY_ERROR_PATH];   /* of a hard link that cannot be made; else empty */
} lay_error;

/* ---- what this build is made of ------------------------------------------------------------ */

const char *lay_build_sha256(void);   /* "libcrypto 3.0.19" */
const char *lay_build_crc64(void);    /* "isa-l", "pclmul" or "plain" */
const char *lay_build_gzip(void);     /* "isa-l 2.30" or "zlib 1.2.13" */
const char *lay_build_zstd(void);     /* "libzstd 1.5.4" or "" */

/* ---- layers as they are handed in ------------------------------------------------------------ */

typedef struct lay_lower lay_lower;
/* A layer that is a directory, by its descriptor; or, where lower is not NULL, a layer that is kept otherwise, and fd is
 * not looked at. Where a function says that layers must be directories, another one is LAY_E_UNSUPPORTED. */
typedef struct lay_shown { int fd; const lay_lower *lower; } lay_shown;
/* What was seen to be damaged in such a layer, which it told as EUCLEAN; NULL: nothing was. */
const char *lay_lower_damage(const lay_lower *l);

/* ---- limits: what a hostile tar may ask for --------------------------------------------------- */

/* X(name, default) for each. 0: none. The option of the store that sets it is max_<name>. On by default is what bounds memory
 * and time out of proportion to the bytes of the tar; each lies far above what any real layer was seen to have. What only
 * costs disk is the caller's to bound: Docker stores layers of any size. */
#define LAY_LIMITS(X) \
    X(entries, 16 << 20)             /* of the tar, with the directories made for want of an entry */ \
    X(size, 0)                       /* bytes the files have when unpacked, holes too */ \
    X(file_size, 0)                  /* of one of them */ \
    X(tar_size, 0)                   /* bytes of the plain tar, after inflating */ \
    X(record, 0)                     /* bytes of the tar-split record, as it is stored */ \
    X(names, INT64_C(2) << 30)       /* bytes of all names and link targets of the tar */ \
    X(path, 16 << 10)                /* bytes of one of them; four times the kernel's PATH_MAX */ \
    X(depth, 1 << 10)                /* components of a name, those of the links it leads through too: at worst some 30 ms each */ \
    X(header, 1 << 20)               /* bytes of one PAX or GNU long-name record, or of a sparse map; Go's */ \
    X(headers, 8 << 20)              /* of all such records of one entry, with the blocks that announce them */ \
    X(global_headers, 16 << 20)      /* of all global PAX headers of the tar, likewise */ \
    X(extents, 1 << 20)              /* pieces of one sparse file; Go's */ \
    X(xattrs, 1 << 10)               /* extended attributes of one entry */ \
    X(xattr_size, 1 << 20)           /* bytes of their names and values */ \
    X(window, 128 << 20)             /* bytes a zstd frame may look back, down to a power of two; that of zstd --long */

typedef struct lay_limits {
#define LAY_FIELD(name, value) int64_t name;
    LAY_LIMITS(LAY_FIELD)
#undef LAY_FIELD
} lay_limits;

/* Those that hold where none are given. */
const lay_limits *lay_limits_default(void);
/* Number i, where it stands, and its option; NULL: there are no more. */
int64_t *lay_limits_at(lay_limits *l, size_t i, const char **option);

/* ---- apply: a layer tar comes in ------------------------------------------------------------ */

#define LAY_APPLY_USERNS 1u      /* in a user namespace: user.overlay marks, devices cannot be made */
#define LAY_APPLY_USERXATTR 2u   /* user.overlay marks, as the layers below have them */
#define LAY_APPLY_PRESENT 4u     /* erofs: the bytes that come are where the image has them already */

/* Of the bytes that come in, as they come: compressed, if they are. */
typedef enum lay_digest_kind { LAY_DIGEST_NONE, LAY_DIGEST_SHA256, LAY_DIGEST_SHA384, LAY_DIGEST_SHA512 } lay_digest_kind;
#define LAY_DIGEST_MOST 64u      /* bytes of the longest */

typedef struct lay_apply_options {
    int workers;                /* 0: everything in line; -1: one less than there are processors, 1 to 4 */
    unsigned flags;             /* LAY_APPLY_; disassemble: none */
    const lay_limits *limits;   /* copied; NULL: lay_limits_default */
    lay_digest_kind digest;     /* source_digest is to be of this kind */
} lay_apply_options;

typedef struct lay_applied {
    uint8_t diff_id[32];   /* register, disassemble: SHA-256 of every byte of the uncompressed tar */
    int64_t tar_size;      /* those bytes */
    int64_t size;          /* register: bytes in root, moby's size of a layer. over_...: sum of the header sizes */
    int64_t entries;
    int64_t left_out;      /* USERNS: devices that could not be made */
    const char *first_left_out;   /* the path of the first; "": all were made */
    const void *unsettled;        /* what lay_stand_on takes */
    size_t unsettled_len;         /* 0: nothing in the tree depends on what is below */
    uint8_t source_digest[LAY_DIGEST_MOST];   /* of every byte that came, those behind a compressed stream's end too */
    size_t source_digest_len;     /* of it; 0: none was asked for */
    int64_t source_size;          /* those bytes */
} lay_applied;

typedef struct lay_apply lay_apply;
typedef struct lay_source lay_source;

/* A layer becomes files in root (empty) and a tar-split record, gzip. scratch_fd: a directory on root's file system,
 * outside of root, for files that a later entry replaces. */
lay_code lay_apply_register(lay_apply **out, int root_fd, int scratch_fd, int record_fd, const lay_apply_options *o, lay_error *err);
/* No files; the record is JSON lines. A tar whose names come again is read again: from again_fd, the plain tar from
 * again_offset on; or (again_offset -1) again_fd is an empty file that keeps the bytes. again_fd -1: from what was lent, or not. */
lay_code lay_apply_disassemble(lay_apply **out, int record_fd, int again_fd, int64_t again_offset, const lay_apply_options *o, lay_error *err);
/* No files, as they lie there already; the record is gzip, as a layer's. What comes must be readable once only, and must
 * have no name twice: as lay_export_tree_open makes it. */
lay_code lay_apply_record(lay_apply **out, int record_fd, const lay_apply_options *o, lay_error *err);
/* Onto what the layers below show, without a record: whiteouts delete it, and nothing of this tar. over_tree: a plain
 * directory, where names lead through links of this tar alone, as where a layer is unpacked by itself. over_mount: a
 * mounted overlay; what follows the end of the archive is not asked for. */
lay_code lay_apply_over_tree(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err);
lay_code lay_apply_over_mount(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err);
/* An EROFS image over the tar: fd, an empty file open for reading and writing, gets the tar from byte LAY_IMAGE_TAR on, behind it
 * the metadata, as the tar says it on n lowers, nearest first, and at finish the header; without that it is no image.
 * Nothing is synced. flags: LAY_APPLY_PRESENT, with which fd is not empty: what comes is read out of it, say, as it was cloned. */
#define LAY_IMAGE_TAR 4096
lay_code lay_apply_erofs(lay_apply **out, int fd, const lay_shown *lowers, size_t n, const lay_apply_options *o, lay_error *err);
/* Copies n bytes in; waits while the pipeline is full. */
lay_code lay_apply_push(lay_apply *a, const void *bytes, size_t n, lay_error *err);
/* Lends n bytes, which must stay as they are until finish or free. */
lay_code lay_apply_lend(lay_apply *a, const void *bytes, size_t n, lay_error *err);
/* Reads fd from where it stands (offset < 0) or from *offset on, which moves; returns after at most
 * max_bytes or about max_ms milliseconds. *end becomes 1 when there is no more to read or to want. */
lay_code lay_apply_pump(lay_apply *a, int fd, int64_t *offset, int64_t max_bytes, int max_ms, int *end, lay_error *err);
/* Reads a source, whose bytes are a plain tar; returns and *end as above. */
lay_code lay_apply_draw(lay_apply *a, lay_source *s, int64_t max_bytes, int max_ms, int *end, lay_error *err);
/* Bytes taken in so far, as they came (before inflating). */
int64_t lay_apply_taken(const lay_apply *a);
/* 1 when nothing more is wanted (over_mount, and the end of the archive has passed). */
int lay_apply_sated(const lay_apply *a);
/* The input has ended: joins every thread, completes record and tree. Only free may follow; *out points to what free ends. */
lay_code lay_apply_finish(lay_apply *a, lay_applied *out, lay_error *err);
/* Stops and joins what still runs. NULL is fine. */
void lay_apply_free(lay_apply *a);

/* The layer at root_fd, unpacked alone, stands on n lowers, nearest first. A directory that its tar has no entry for
 * becomes what the lowers show there, and an opaque mark at the top becomes marks of each name there.
 * unsettled: as lay_applied has it. flags: LAY_APPLY_USERNS, LAY_APPLY_USERXATTR. */
lay_code lay_stand_on(int root_fd, const void *unsettled, size_t size, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err);

/* ---- source: a tar goes out ------------------------------------------------------------------ */

/* Fills buf with n bytes unless the tar ends before, or a copy stopped before it: then what that had read ahead comes
 * first. *got == 0 with n > 0 is the end, and then what was promised about the whole has been checked. An error comes
 * after all good bytes were given. */
lay_code lay_source_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err);
/* Writes to fd from the present position, at most max_bytes or about max_ms; *end as in pump. */
lay_code lay_source_copy(lay_source *s, int fd, int64_t max_bytes, int max_ms, int64_t *written, int *end, lay_error *err);
/* Writes of n bytes what fd takes now, into a pipe without waiting; none and EAGAIN: waits max_ms for room, and gives 0.
 * -1 with errno otherwise, EINTR among others. */
int64_t lay_write_some(int fd, const void *p, size_t n, int max_ms);
/* The whole length, wherever the source stands. May read the record or walk the tree once. */
lay_code lay_source_size(lay_source *s, int64_t *size, lay_error *err);
/* Only a stored tar, assembled or not, can: else LAY_E_UNSUPPORTED. Beyond the end is allowed, as in a file. */
lay_code lay_source_seek(lay_source *s, int64_t offset, lay_error *err);
int64_t lay_source_tell(const lay_source *s);
void lay_source_free(lay_source *s);

/* The tar that record describes (gzip or JSON lines), payloads read beneath root.
 * diff_id: 32 bytes, checked when read from first byte to end; or NULL. */
lay_code lay_assemble_open(lay_source **out, int record_fd, int root_fd, const uint8_t *diff_id, lay_error *err);

/* The tar of size bytes that lies at an offset of fd, a regular file. diff_id: as above. */
/* Where the next byte of a range lies, how many follow, and, of a whole one that is checked, the DiffID; 0: it is no range. */
int lay_range_lies(const lay_source *s, int *fd, int64_t *offset, int64_t *left, const uint8_t **diff_id);
lay_code lay_range_open(lay_source **out, int fd, int64_t offset, int64_t size, const uint8_t *diff_id, lay_error *err);

#define LAY_EXPORT_OVERLAY 1u   /* root is an upper directory: 0:0 devices and opaque marks become .wh. */
#define LAY_EXPORT_USERXATTR 2u /* those marks are user.overlay., not trusted.overlay. */
#define LAY_EXPORT_KEEP 4u      /* extended attributes, ACLs and nanoseconds go along, in PAX records */
#define LAY_EXPORT_SKIP_MARKS 8u /* a name that begins with .wh. is left out, with all below it; else LAY_E_BREAKOUT */
#define LAY_EXPORT_WHOLE 16u    /* nothing is below: no directory is said to hide anything */

/* A fresh tar of everything below root (moby's TarWithOptions). */
lay_code lay_export_tree_open(lay_source **out, int root_fd, unsigned flags, lay_error *err);

typedef struct lay_directory_options {
    const char *prefix;                       /* where in the tar: "", or "a/b" */
    int64_t newest;                           /* no entry is of a later second */
    int64_t uid, gid;                         /* of all entries; -1: their own */
    const char *exclude; size_t excludes;     /* so many patterns, each with its NUL: what fits one is left out, with all below it */
} lay_directory_options;

/* A reproducible tar of what is below root: sorted by whole paths, whole seconds, of attributes only user.* and
 * capabilities. All names are listed by this call. */
lay_code lay_export_directory_open(lay_source **out, int root_fd, const lay_directory_options *o, lay_error *err);

/* A fresh tar of layers stacked, the nearest first: lay_export_tree_open's of the one directory that merging them makes, which stands on below.
 * A whiteout of what is not there is left out; below NULL: none is. OVERLAY goes without saying. Layers that are no directories
 * are read as they are. What is damaged in one is LAY_E_MISMATCH. */
lay_code lay_export_stack_open(lay_source **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err);

#define LAY_LEFT_XATTR 0        /* things whose extended attributes are left out, or some of them */
#define LAY_LEFT_ACL 1          /* things whose ACLs are: the group then has its own rights, not the mask's */
#define LAY_LEFT_SOCKET 2       /* sockets: no tar has them */
#define LAY_LEFT_MARK 3         /* names that begin with .wh. */
#define LAY_LEFT_KINDS 4
#define LAY_LEFT_NAMED 4        /* paths kept of a kind */

/* Bytes of the files that a fresh tar was made of so far, as lay_tree_size counts them. */
int64_t lay_export_files_size(const lay_source *s);
/* How many things of a kind a fresh tar leaves out: of all that was read, once it was read to its end; before, what
 * lay_source_size saw. path i of the first few, alive as long as s, or NULL. */
int64_t lay_export_left_out(const lay_source *s, int kind);
const char *lay_export_left_path(const lay_source *s, int kind, size_t i);

/* ---- changes: how one tree differs from another ----------------------------------------------- */

#define LAY_CHANGE_MODIFY 0
#define LAY_CHANGE_ADD 1
#define LAY_CHANGE_DELETE 2

#define LAY_CHANGES_USERXATTR 1u
#define LAY_CHANGES_ATTRIBUTES 2u   /* of two plain trees: what differs in what LAY_EXPORT_KEEP keeps is ATTRIBUTES */
#define LAY_CHANGES_TOUCHED 4u      /* of two mounts on the same lowers: what has another ctime is MODIFY, however alike */
#define LAY_CHANGES_CONTENTS 8u     /* times do not count: what has the same type, mode, owner, target, device and bytes is the same */
#define LAY_CHANGES_OLD_USERXATTR 16u   /* of two stacks: the old one's marks are user.overlay. */
#define LAY_CHANGE_ATTRIBUTES 3     /* with this flag alone: moby would not call it a change */

typedef struct lay_changes lay_changes;

/* new_fd against old_fd (-1: nothing), two plain trees. flags: ATTRIBUTES, TOUCHED, CONTENTS. */
lay_code lay_changes_trees(lay_changes **out, int new_fd, int old_fd, unsigned flags, lay_error *err);
/* Overlay upper directories that lie upon each other against n lowers, nearest first. Reads uppers, looks up lowers.
 * flags: USERXATTR, CONTENTS. */
lay_code lay_changes_overlay(lay_changes **out, const lay_shown *uppers, size_t m, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err);
/* Two overlays, each all of its layers, nearest first. Where the same directories lie at the end of both they are only
 * looked up. flags: as for overlay, OLD_USERXATTR. */
lay_code lay_changes_stacks(lay_changes **out, const lay_shown *fresh, size_t n, const lay_shown *old, size_t m, unsigned flags, lay_error *err);
size_t lay_changes_count(const lay_changes *c);
/* Change i: kind; *path is absolute inside the tree, NUL-terminated, alive until free. */
int lay_changes_at(const lay_changes *c, size_t i, const char **path, size_t *path_len);
void lay_changes_free(lay_changes *c);

/* A fresh tar of the changes over the tree at root (moby's ExportChanges). Takes its own copy of c. flags: KEEP, SKIP_MARKS. */
lay_code lay_export_changes_open(lay_source **out, int root_fd, const lay_changes *c, unsigned flags, lay_error *err);

/* ---- check: is a stored layer what it was ------------------------------------------------------ */

#define LAY_PROBLEM_NONE 0
#define LAY_PROBLEM_CONTENT 1   /* a file's bytes, a link's target, what kind of thing it is, or the whole tar */
#define LAY_PROBLEM_MISSING 2   /* what the tar recorded is gone */
#define LAY_PROBLEM_RECORD 3    /* the record cannot be read, or is none of a layer */
#define LAY_PROBLEM_METADATA 4  /* mode, owner, times, extended attributes, marks, or names that shared one file */
#define LAY_PROBLEM_ADDED 5     /* a name that the tar does not have */

#define LAY_CHECK_METADATA 1u   /* compare more than presence and bytes */
#define LAY_CHECK_USERNS 2u     /* in a user namespace: trusted.* cannot be seen */
#define LAY_CHECK_USERXATTR 4u  /* overlay's marks are user.* */
#define LAY_CHECK_FIRST 8u      /* the directory came first, and its tar was made of it (lay_export_tree_open, KEEP not given):
                                 * it may have what such a tar leaves out */

typedef struct lay_check_options {
    int record_fd, root_fd;
    const uint8_t *diff_id;               /* 32 bytes, or NULL */
    const lay_shown *lowers; size_t nlowers;  /* what it stands on, nearest first: a whiteout of nothing may be missing */
    unsigned flags;                       /* LAY_CHECK_ */
} lay_check_options;

typedef struct lay_problem {
    int kind;                             /* LAY_PROBLEM_ */
    const char *path; size_t path_len;    /* in the layer, a mark as the tar names it; NUL-terminated, until the next call */
    char text[LAY_ERROR_TEXT];            /* one sentence */
} lay_problem;

typedef struct lay_check lay_check;
lay_code lay_check_open(lay_check **out, const lay_check_options *options, lay_error *err);
/* Works on to the next problem or for about max_ms. problem->kind NONE with *end 0: call again; with *end 1: all is
 * looked at. Damage is never an error of the call. */
lay_code lay_check_next(lay_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err);
int64_t lay_check_bytes(const lay_check *c);     /* of files, looked at so far */
void lay_check_free(lay_check *c);

/* ---- image: is a layer that is an image what its tar makes --------------------------------------- */

/* An image's descriptor, the bytes and DiffID of the tar in it, and what it stands on, nearest first. */
typedef struct lay_image_of {
    int fd;
    int64_t tar_size;
    const uint8_t *diff_id;               /* 32 bytes */
    const lay_shown *lowers; size_t nlowers;
    const lay_limits *limits;             /* of the tar; NULL: what a tar that was accepted once may have */
} lay_image_of;

/* Metadata and header anew, from the headers of the tar that is in the file. The header is written last. */
lay_code lay_erofs_rebuild(const lay_image_of *image, lay_error *err);

typedef struct lay_erofs_check lay_erofs_check;
/* SHA-256 of the tar against its DiffID (CONTENT); if it is right and metadata is asked for, all else in the file against
 * what lay_apply_erofs would have written (METADATA). What image has is used until free. */
lay_code lay_erofs_check_open(lay_erofs_check **out, const lay_image_of *image, int metadata, lay_error *err);
/* As lay_check_next. */
lay_code lay_erofs_check_next(lay_erofs_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err);
int64_t lay_erofs_check_bytes(const lay_erofs_check *c);     /* looked at so far */
void lay_erofs_check_free(lay_erofs_check *c);

/* ---- listing: what a stored layer holds, by its record alone ------------------------------------ */

#define LAY_LISTED_FILE 0
#define LAY_LISTED_DIRECTORY 1
#define LAY_LISTED_SYMLINK 2
#define LAY_LISTED_LINK 3        /* a hard link */
#define LAY_LISTED_CHARACTER 4
#define LAY_LISTED_BLOCK 5
#define LAY_LISTED_FIFO 6
#define LAY_LISTED_WHITEOUT 7
#define LAY_LISTED_OPAQUE 8

/* One entry. Texts end with a NUL and live until the next batch. */
typedef struct lay_listed {
    int kind;                              /* LAY_LISTED_ */
    const char *name; size_t name_len;     /* as the tar spells it */
    const char *path; size_t path_len;     /* cleaned, relative, "." is the root; of a mark: what it hides */
    const char *link; size_t link_len;     /* a symbolic link's text; a hard link's file, cleaned */
    int64_t size;                          /* of a file, else 0 */
    int64_t mode, uid, gid;
    int64_t mtime_sec, atime_sec;
    int mtime_nsec, atime_nsec, has_atime;
    int64_t dev_major, dev_minor;
    const char *xattrs; size_t nxattrs;    /* for lay_listed_xattr */
    int64_t offset;                        /* of a file's bytes in the tar; -1 where they are not there as they are */
    uint64_t crc; int has_crc;             /* CRC-64 of them */
} lay_listed;

typedef struct lay_listing lay_listing;
lay_code lay_listing_open(lay_listing **out, int record_fd, lay_error *err);
/* Of the tar that lay_export_stack_open makes of these, SKIP_MARKS given, without making it: no entry has an offset or a
 * CRC, and what could not be listed ends it with its own error. */
lay_code lay_listing_stack_open(lay_listing **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err);
/* Of the tar of size bytes that lies at an offset of fd, by its headers: no payload is read. As of its record, but no
 * entry has a CRC. */
lay_code lay_listing_tar_open(lay_listing **out, int fd, int64_t offset, int64_t size, lay_error *err);
/* Reads on, in the tar's order, to about max_entries or for about max_ms; *count entries are there then. *end 1:
 * these are the last. LAY_E_SPLIT: what follows cannot be read; every entry before it has been given. */
lay_code lay_listing_next(lay_listing *l, size_t max_entries, int max_ms, size_t *count, int *end, lay_error *err);
void lay_listing_at(const lay_listing *l, size_t i, lay_listed *out);
/* One xattr at a time: begin with listed.xattrs; gives where the next one is. */
const char *lay_listed_xattr(const char *at, const char **name, const uint8_t **value, size_t *len);
void lay_listing_free(lay_listing *l);
/* A listed file for reading, beneath root and through no link: a regular file of this size, or LAY_E_MISMATCH. */
lay_code lay_listed_open(int root_fd, const char *path, int64_t size, int *fd, lay_error *err);
/* Its CRC: begin with 0, add what was read. */
uint64_t lay_listed_crc(uint64_t crc, const void *p, size_t n);

/* ---- walk: the entries of a tar whose bytes others read ------------------------------------------- */

/* One entry. Texts end with a NUL and live until the next feed. */
typedef struct lay_walked {
    const char *name; size_t name_len;     /* as the tar spells it */
    const char *link; size_t link_len;
    char type;                             /* as Go's archive/tar has it: '0' file, '1' link, '2' symlink, '5' directory,
                                              'g' global header ... */
    int sparse;                            /* its bytes are not those of the file */
    int64_t stored, padding;               /* bytes that follow: of the payload, and up to the next header */
    const char *doubt;                     /* why other readers of tars see another entry here; NULL: they do not */
} lay_walked;

typedef struct lay_walk lay_walk;
lay_code lay_walk_open(lay_walk **out, lay_error *err);
/* How many bytes to feed next: at least 1, none of a payload or of padding; 0 when the archive's end has passed. */
size_t lay_walk_wants(const lay_walk *w);
/* Takes so many bytes, or fewer. *found 1: an entry is there, and what it says follows is passed over elsewhere. */
lay_code lay_walk_feed(lay_walk *w, const void *p, size_t n, lay_walked *entry, int *found, lay_error *err);
/* The stream ends here: LAY_OK, or LAY_E_TRUNCATED. */
lay_code lay_walk_end(lay_walk *w, lay_error *err);
void lay_walk_free(lay_walk *w);
/* Does a tar begin so: are 512 bytes a header with a right checksum, or all zero? */
int lay_walk_begins(const uint8_t *block);

/* ---- EROFS images: reading one that lies in a file, without a mount --------------------------------- */

typedef struct lay_erofs lay_erofs;     /* any threads may use it at once */

/* Duplicates fd. size: how long the file must be, or -1. devices: descriptors of what other files it has its bytes in, as
 * many as it has slots; none: they are in the file itself, behind the image. LAY_E_IMAGE: the superblock says what cannot
 * be; later, of what it leads to, LAY_E_MISMATCH (as a lower: EUCLEAN, and lay_lower_damage tells it). */
lay_code lay_erofs_open(lay_erofs **out, int fd, int64_t size, const int *devices, size_t n, lay_error *err);
/* One more who must free it. */
void lay_erofs_hold(const lay_erofs *e);
void lay_erofs_free(lay_erofs *e);
/* As a layer, as long as it is held. */
const lay_lower *lay_erofs_lower(const lay_erofs *e);
/* The tar's bytes, as the volume's name has them, or -1. */
int64_t lay_erofs_tar_bytes(const lay_erofs *e);

typedef struct lay_erofs_thing {
    uint64_t ino, rdev;                    /* rdev as makedev() has it */
    int64_t size, mtime_sec;
    uint32_t mode, uid, gid, nlink, mtime_nsec;
} lay_erofs_thing;
/* What is at a path (n bytes; none: the root), through no link. LAY_E_OS: ENOENT, ENOTDIR, ELOOP. */
lay_code lay_erofs_find(const lay_erofs *e, const char *path, size_t n, lay_erofs_thing *out, lay_error *err);
/* Of a file, by its ino: the next piece from an offset on that is no hole; out->n 0: there is none. device 0: the image's file. */
typedef struct lay_erofs_piece { int64_t offset, n, at; unsigned device; } lay_erofs_piece;
lay_code lay_erofs_next_piece(const lay_erofs *e, uint64_t ino, int64_t offset, lay_erofs_piece *out, lay_error *err);
/* Bytes of a file, as pread; or a link's text, if offset is -1: n must be 4096. */
lay_code lay_erofs_read(const lay_erofs *e, uint64_t ino, void *buf, size_t n, int64_t offset, size_t *got, lay_error *err);
/* A directory's names, sorted, each with its NUL: *text is to be freed. */
lay_code lay_erofs_names(const lay_erofs *e, uint64_t ino, char **text, size_t *count, lay_error *err);
/* One extended attribute, as getxattr; name NULL: the names of all. LAY_E_OS: ENODATA, ERANGE. */
lay_code lay_erofs_attribute(const lay_erofs *e, uint64_t ino, const char *name, void *buf, size_t n, size_t *got, lay_error *err);
/* Looks at all of it that can be reached. LAY_E_MISMATCH: the first that cannot be so, and the path where it is. */
lay_code lay_erofs_verify(const lay_erofs *e, lay_error *err);
/* Why this is not what we would write over a tar of that size with that DiffID, by the superblock alone: into text, which
 * names the field; empty: it is. */
void lay_erofs_refusal(const lay_erofs *e, const uint8_t diff_id[32], int64_t tar_size, char text[LAY_ERROR_TEXT]);

/* ---- layers that are images, stacked as one image ----------------------------------------------------- */

typedef struct lay_erofs_flat lay_erofs_flat;
/* What n images show together, the nearest first, without marks of deletion. whole 0: an index, whose devices are the files
 * of these images, the lowest first; 1: all bytes are copied into it. LAY_E_UNSUPPORTED: an image whose files do not lie in
 * blocks of 512 bytes of its own file. Holds the images. */
lay_code lay_erofs_flat_open(lay_erofs_flat **out, lay_erofs *const *images, size_t n, int whole, lay_error *err);
/* Works for about max_ms, or to the next bytes of the new image, which live until the next call. *end 1: they are the last. */
lay_code lay_erofs_flat_next(lay_erofs_flat *f, int max_ms, const void **p, size_t *n, int *end, lay_error *err);
void lay_erofs_flat_free(lay_erofs_flat *f);

/* ---- packing: plain bytes become gzip or zstd --------------------------------------------------- */

typedef enum lay_packing { LAY_PACK_GZIP, LAY_PACK_ZSTD } lay_packing;
typedef struct lay_packer lay_packer;   /* one gzip member, or one frame */

lay_code lay_packer_open(lay_packer **out, lay_packing how, lay_error *err);   /* LAY_E_UNSUPPORTED: no libzstd in this build */
/* Takes *used of n bytes and gives *got of at most room. end: nothing follows these n; again, with what is left of them,
 * until *done. Without end, again until all are used. */
lay_code lay_packer_run(lay_packer *k, const void *p, size_t n, int end, void *out, size_t room, size_t *used, size_t *got, int *done, lay_error *err);
void lay_packer_free(lay_packer *k);

/* ---- clone: a tree once more ------------------------------------------------------------------- */

#define LAY_CLONE_LINK 1u        /* directories are made, the rest is linked; copied where the kernel refuses a link */
#define LAY_CLONE_USERXATTR 2u   /* overlay's marks are user.overlay., not trusted.overlay. */

typedef struct lay_clone lay_clone;
/* All below from becomes the same below to, an empty directory, which itself becomes like from. Files share their data
 * where the file system can; else their data is copied, holes stay holes. Kept: kinds, modes, owners, times, extended
 * attributes (marks of overlays too, but origin, upper, index, nlink and uuid of this class), devices, names that share
 * an inode. Sockets are left out. Another process may change the tree meanwhile: a name that vanishes is left out.
 * workers: threads that copy; 0: all in line; -1: one more than there are processors, 2 to 5. */
lay_code lay_clone_open(lay_clone **out, int from_fd, int to_fd, unsigned flags, int workers, lay_error *err);
/* Works for about max_ms. *end 1: all is there. */
lay_code lay_clone_run(lay_clone *c, int max_ms, int *end, lay_error *err);
/* After the end: path i of a file that changed each time it was copied, and was taken as it was read; NULL: no more. */
const char *lay_clone_unsteady(const lay_clone *c, size_t i);
/* Stops and joins what still runs; what was made stays. NULL is fine. */
void lay_clone_free(lay_clone *c);

/* ---- merge: layers stacked become one directory ------------------------------------------------- */

#define LAY_MERGE_USERXATTR 1u   /* overlay's marks are user.overlay. */
#define LAY_MERGE_OVER_MARKS 2u  /* a whiteout also stays if what is below is a whiteout */

typedef struct lay_merge lay_merge;
/* What n layers stacked show, the nearest first, is made below to, an empty directory: directories anew, all else by hard
 * links, copied where the kernel refuses one. A whiteout stays if what is below the run has something of its name. The
 * layers' descriptors are used until free. */
lay_code lay_merge_open(lay_merge **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, int to_fd, unsigned flags, lay_error *err);
/* Works for about max_ms. *end 1: all is there. */
lay_code lay_merge_run(lay_merge *m, int max_ms, int *end, lay_error *err);
void lay_merge_free(lay_merge *m);

/* ---- trees ------------------------------------------------------------------------------------ */

/* Bytes in a tree as moby counts them: st_size of all but directories, each inode once. */
lay_code lay_tree_size(int root_fd, int64_t *size, lay_error *err);
#define LAY_STACK_USERXATTR 1u
/* The same of what layers stacked show, the nearest first. */
lay_code lay_stack_size(const lay_shown *layers, size_t n, unsigned flags, int64_t *size, lay_error *err);
/* The regular file that they show at a path, open for reading; no link is followed. LAY_E_OS: ENOENT, EINVAL: it is no file. */
lay_code lay_stack_open(const lay_shown *layers, size_t n, unsigned flags, const char *path, int *fd, lay_error *err);
/* What trees and files take of the disk, each inode once over all that were added: blocks, directories too. freed: what removing all
 * of them frees, so a file counts with the last of its names. bytes: of this tree alone. */
typedef struct lay_blocks lay_blocks;
lay_code lay_blocks_open(lay_blocks **out, int freed, lay_error *err);
lay_code lay_blocks_add(lay_blocks *b, int root_fd, int64_t *bytes, lay_error *err);
void lay_blocks_free(lay_blocks *b);
/* Let root and all below it belong to another project of the file system's quotas. */
lay_code lay_tree_set_project(int root_fd, unsigned project, lay_error *err);
/* Remove parent_fd/name with all below it; fine if it is not there. Never follows a link, never
 * crosses into a mount: LAY_E_OS with EBUSY and the path then. */
lay_code lay_tree_remove(int parent_fd, const char *name, lay_error *err);

#endif
