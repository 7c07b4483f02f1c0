# lay.pxd - lay.h for Cython; check(), the one way from a lay_error to an exception; and who may use a handle.
#
# Whatever is lay_'s is called without the GIL and raises nothing itself. A Handle is shown to the
# sibling modules in a PyCapsule, as they share no types in the limited API.
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EUCLEAN
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef extern from "lay.h" nogil:
    ctypedef enum lay_code:
        LAY_OK
        LAY_E_OS
        LAY_E_MISMATCH
    ctypedef struct lay_error:
        lay_code code
        int sys_errno
        int64_t offset
        char *path
        char *text
        char *target

    const char *lay_build_sha256() noexcept
    const char *lay_build_crc64() noexcept
    const char *lay_build_gzip() noexcept
    const char *lay_build_zstd() noexcept

    ctypedef struct lay_lower
    ctypedef struct lay_shown:
        int fd
        const lay_lower *lower

    ctypedef struct lay_limits:
        int64_t window
    const lay_limits *lay_limits_default() noexcept
    int64_t *lay_limits_at(lay_limits *l, size_t i, const char **option) noexcept

    unsigned LAY_APPLY_USERNS, LAY_APPLY_USERXATTR, LAY_APPLY_PRESENT
    ctypedef enum lay_digest_kind:
        LAY_DIGEST_NONE, LAY_DIGEST_SHA256, LAY_DIGEST_SHA384, LAY_DIGEST_SHA512
    ctypedef struct lay_apply_options:
        int workers
        unsigned flags
        const lay_limits *limits
        lay_digest_kind digest
    ctypedef struct lay_applied:
        uint8_t diff_id[32]
        int64_t tar_size
        int64_t size
        int64_t entries
        int64_t left_out
        const char *first_left_out
        const void *unsettled
        size_t unsettled_len
        uint8_t source_digest[64]
        size_t source_digest_len
        int64_t source_size
    ctypedef struct lay_apply
    ctypedef struct lay_source
    lay_code lay_apply_register(lay_apply **out, int root_fd, int scratch_fd, int record_fd, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_record(lay_apply **out, int record_fd, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_disassemble(lay_apply **out, int record_fd, int again_fd, int64_t again_offset, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_over_tree(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_over_mount(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_erofs(lay_apply **out, int fd, const lay_shown *lowers, size_t n, const lay_apply_options *o, lay_error *err) noexcept
    lay_code lay_apply_push(lay_apply *a, const void *bytes, size_t n, lay_error *err) noexcept
    lay_code lay_apply_lend(lay_apply *a, const void *bytes, size_t n, lay_error *err) noexcept
    lay_code lay_apply_pump(lay_apply *a, int fd, int64_t *offset, int64_t max_bytes, int max_ms, int *end, lay_error *err) noexcept
    lay_code lay_apply_draw(lay_apply *a, lay_source *s, int64_t max_bytes, int max_ms, int *end, lay_error *err) noexcept
    int64_t lay_apply_taken(const lay_apply *a) noexcept
    int lay_apply_sated(const lay_apply *a) noexcept
    lay_code lay_apply_finish(lay_apply *a, lay_applied *out, lay_error *err) noexcept
    void lay_apply_free(lay_apply *a) noexcept
    lay_code lay_stand_on(int root_fd, const void *unsettled, size_t size, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err) noexcept

    lay_code lay_source_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err) noexcept
    lay_code lay_source_copy(lay_source *s, int fd, int64_t max_bytes, int max_ms, int64_t *written, int *end, lay_error *err) noexcept
    int64_t lay_write_some(int fd, const void *p, size_t n, int max_ms) noexcept
    lay_code lay_source_size(lay_source *s, int64_t *size, lay_error *err) noexcept
    lay_code lay_source_seek(lay_source *s, int64_t offset, lay_error *err) noexcept
    int64_t lay_source_tell(const lay_source *s) noexcept
    void lay_source_free(lay_source *s) noexcept
    int lay_range_lies(const lay_source *s, int *fd, int64_t *offset, int64_t *left, const uint8_t **diff_id) noexcept
    lay_code lay_range_open(lay_source **out, int fd, int64_t offset, int64_t size, const uint8_t *diff_id, lay_error *err) noexcept
    lay_code lay_assemble_open(lay_source **out, int record_fd, int root_fd, const uint8_t *diff_id, lay_error *err) noexcept
    unsigned LAY_EXPORT_OVERLAY, LAY_EXPORT_USERXATTR, LAY_EXPORT_KEEP, LAY_EXPORT_SKIP_MARKS, LAY_EXPORT_WHOLE
    lay_code lay_export_tree_open(lay_source **out, int root_fd, unsigned flags, lay_error *err) noexcept
    ctypedef struct lay_directory_options:
        const char *prefix
        int64_t newest, uid, gid
        const char *exclude
        size_t excludes
    lay_code lay_export_directory_open(lay_source **out, int root_fd, const lay_directory_options *o, lay_error *err) noexcept
    lay_code lay_export_stack_open(lay_source **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err) noexcept
    int LAY_LEFT_XATTR, LAY_LEFT_ACL, LAY_LEFT_SOCKET, LAY_LEFT_MARK, LAY_LEFT_NAMED
    int64_t lay_export_files_size(const lay_source *s) noexcept
    int64_t lay_export_left_out(const lay_source *s, int kind) noexcept
    const char *lay_export_left_path(const lay_source *s, int kind, size_t i) noexcept

    unsigned LAY_CHANGES_USERXATTR, LAY_CHANGES_ATTRIBUTES, LAY_CHANGES_TOUCHED, LAY_CHANGES_CONTENTS, LAY_CHANGES_OLD_USERXATTR
    ctypedef struct lay_changes
    lay_code lay_changes_trees(lay_changes **out, int new_fd, int old_fd, unsigned flags, lay_error *err) noexcept
    lay_code lay_changes_overlay(lay_changes **out, const lay_shown *uppers, size_t m, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err) noexcept
    lay_code lay_changes_stacks(lay_changes **out, const lay_shown *fresh, size_t n, const lay_shown *old, size_t m, unsigned flags, lay_error *err) noexcept
    size_t lay_changes_count(const lay_changes *c) noexcept
    int lay_changes_at(const lay_changes *c, size_t i, const char **path, size_t *path_len) noexcept
    void lay_changes_free(lay_changes *c) noexcept
    lay_code lay_export_changes_open(lay_source **out, int root_fd, const lay_changes *c, unsigned flags, lay_error *err) noexcept

    int LAY_PROBLEM_NONE, LAY_PROBLEM_CONTENT, LAY_PROBLEM_MISSING, LAY_PROBLEM_RECORD, LAY_PROBLEM_METADATA, LAY_PROBLEM_ADDED
    unsigned LAY_CHECK_METADATA, LAY_CHECK_USERNS, LAY_CHECK_USERXATTR, LAY_CHECK_FIRST
    ctypedef struct lay_check_options:
        int record_fd
        int root_fd
        const uint8_t *diff_id
        const lay_shown *lowers
        size_t nlowers
        unsigned flags
    ctypedef struct lay_problem:
        int kind
        const char *path
        size_t path_len
        char *text
    ctypedef struct lay_check
    lay_code lay_check_open(lay_check **out, const lay_check_options *options, lay_error *err) noexcept
    lay_code lay_check_next(lay_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err) noexcept
    int64_t lay_check_bytes(const lay_check *c) noexcept
    void lay_check_free(lay_check *c) noexcept

    ctypedef struct lay_image_of:
        int fd
        int64_t tar_size
        const uint8_t *diff_id
        const lay_shown *lowers
        size_t nlowers
        const lay_limits *limits
    lay_code lay_erofs_rebuild(const lay_image_of *image, lay_error *err) noexcept
    ctypedef struct lay_erofs_check
    lay_code lay_erofs_check_open(lay_erofs_check **out, const lay_image_of *image, int metadata, lay_error *err) noexcept
    lay_code lay_erofs_check_next(lay_erofs_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err) noexcept
    int64_t lay_erofs_check_bytes(const lay_erofs_check *c) noexcept
    void lay_erofs_check_free(lay_erofs_check *c) noexcept

    ctypedef struct lay_listed:
        int kind
        const char *name
        size_t name_len
        const char *path
        size_t path_len
        const char *link
        size_t link_len
        int64_t size, mode, uid, gid
        int64_t mtime_sec, atime_sec
        int mtime_nsec, atime_nsec, has_atime
        int64_t dev_major, dev_minor
        const char *xattrs
        size_t nxattrs
        int64_t offset
        uint64_t crc
        int has_crc
    int LAY_LISTED_CHARACTER, LAY_LISTED_BLOCK
    ctypedef struct lay_listing
    lay_code lay_listing_open(lay_listing **out, int record_fd, lay_error *err) noexcept
    lay_code lay_listing_stack_open(lay_listing **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err) noexcept
    lay_code lay_listing_tar_open(lay_listing **out, int fd, int64_t offset, int64_t size, lay_error *err) noexcept
    lay_code lay_listing_next(lay_listing *l, size_t max_entries, int max_ms, size_t *count, int *end, lay_error *err) noexcept
    void lay_listing_at(const lay_listing *l, size_t i, lay_listed *out) noexcept
    const char *lay_listed_xattr(const char *at, const char **name, const uint8_t **value, size_t *len) noexcept
    void lay_listing_free(lay_listing *l) noexcept
    lay_code lay_listed_open(int root_fd, const char *path, int64_t size, int *fd, lay_error *err) noexcept
    uint64_t lay_listed_crc(uint64_t crc, const void *p, size_t n) noexcept

    ctypedef struct lay_walked:
        const char *name
        size_t name_len
        const char *link
        size_t link_len
        char type
        int sparse
        int64_t stored, padding
        const char *doubt
    ctypedef struct lay_walk
    lay_code lay_walk_open(lay_walk **out, lay_error *err) noexcept
    size_t lay_walk_wants(const lay_walk *w) noexcept
    lay_code lay_walk_feed(lay_walk *w, const void *p, size_t n, lay_walked *entry, int *found, lay_error *err) noexcept
    lay_code lay_walk_end(lay_walk *w, lay_error *err) noexcept
    void lay_walk_free(lay_walk *w) noexcept
    int lay_walk_begins(const uint8_t *block) noexcept

    ctypedef struct lay_erofs
    lay_code lay_erofs_open(lay_erofs **out, int fd, int64_t size, const int *devices, size_t n, lay_error *err) noexcept
    void lay_erofs_hold(const lay_erofs *e) noexcept
    void lay_erofs_free(lay_erofs *e) noexcept
    const lay_lower *lay_erofs_lower(const lay_erofs *e) noexcept
    const char *lay_lower_damage(const lay_lower *l) noexcept
    int64_t lay_erofs_tar_bytes(const lay_erofs *e) noexcept
    ctypedef struct lay_erofs_thing:
        uint64_t ino, rdev
        int64_t size, mtime_sec
        unsigned mode, uid, gid, nlink, mtime_nsec
    ctypedef struct lay_erofs_piece:
        int64_t offset, n, at
        unsigned device
    lay_code lay_erofs_find(const lay_erofs *e, const char *path, size_t n, lay_erofs_thing *out, lay_error *err) noexcept
    lay_code lay_erofs_next_piece(const lay_erofs *e, uint64_t ino, int64_t offset, lay_erofs_piece *out, lay_error *err) noexcept
    lay_code lay_erofs_read(const lay_erofs *e, uint64_t ino, void *buf, size_t n, int64_t offset, size_t *got, lay_error *err) noexcept
    lay_code lay_erofs_names(const lay_erofs *e, uint64_t ino, char **text, size_t *count, lay_error *err) noexcept
    lay_code lay_erofs_attribute(const lay_erofs *e, uint64_t ino, const char *name, void *buf, size_t n, size_t *got, lay_error *err) noexcept
    lay_code lay_erofs_verify(const lay_erofs *e, lay_error *err) noexcept
    void lay_erofs_refusal(const lay_erofs *e, const uint8_t *diff_id, int64_t tar_size, char *text) noexcept
    ctypedef struct lay_erofs_flat
    lay_code lay_erofs_flat_open(lay_erofs_flat **out, lay_erofs *const *images, size_t n, int whole, lay_error *err) noexcept
    lay_code lay_erofs_flat_next(lay_erofs_flat *f, int max_ms, const void **p, size_t *n, int *end, lay_error *err) noexcept
    void lay_erofs_flat_free(lay_erofs_flat *f) noexcept

    ctypedef enum lay_packing:
        LAY_PACK_GZIP, LAY_PACK_ZSTD
    ctypedef struct lay_packer
    lay_code lay_packer_open(lay_packer **out, lay_packing how, lay_error *err) noexcept
    lay_code lay_packer_run(lay_packer *k, const void *p, size_t n, int end, void *out, size_t room, size_t *used, size_t *got, int *done, lay_error *err) noexcept
    void lay_packer_free(lay_packer *k) noexcept

    unsigned LAY_CLONE_LINK, LAY_CLONE_USERXATTR
    ctypedef struct lay_clone
    lay_code lay_clone_open(lay_clone **out, int from_fd, int to_fd, unsigned flags, int workers, lay_error *err) noexcept
    lay_code lay_clone_run(lay_clone *c, int max_ms, int *end, lay_error *err) noexcept
    const char *lay_clone_unsteady(const lay_clone *c, size_t i) noexcept
    void lay_clone_free(lay_clone *c) noexcept

    unsigned LAY_MERGE_USERXATTR, LAY_MERGE_OVER_MARKS
    ctypedef struct lay_merge
    lay_code lay_merge_open(lay_merge **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, int to_fd, unsigned flags, lay_error *err) noexcept
    lay_code lay_merge_run(lay_merge *m, int max_ms, int *end, lay_error *err) noexcept
    void lay_merge_free(lay_merge *m) noexcept

    lay_code lay_tree_size(int root_fd, int64_t *size, lay_error *err) noexcept
    unsigned LAY_STACK_USERXATTR
    lay_code lay_stack_size(const lay_shown *layers, size_t n, unsigned flags, int64_t *size, lay_error *err) noexcept
    lay_code lay_stack_open(const lay_shown *layers, size_t n, unsigned flags, const char *path, int *fd, lay_error *err) noexcept
    ctypedef struct lay_blocks
    lay_code lay_blocks_open(lay_blocks **out, int freed, lay_error *err) noexcept
    lay_code lay_blocks_add(lay_blocks *b, int root_fd, int64_t *bytes, lay_error *err) noexcept
    void lay_blocks_free(lay_blocks *b) noexcept
    lay_code lay_tree_set_project(int root_fd, unsigned project, lay_error *err) noexcept
    lay_code lay_tree_remove(int parent_fd, const char *name, lay_error *err) noexcept


cdef inline int check(lay_code code, lay_error *err) except -1 nogil:
    if code == LAY_OK:
        return 0
    with gil:
        from layerstore.errors import from_core
        raise from_core(<int>code, err.sys_errno, err.offset, <bytes>err.path, err.text.decode("utf-8", "replace"), <bytes>err.target)


cdef inline bytes descriptors(fds):
    """An array of int for the core."""
    from array import array
    return array("i", fds).tobytes()


cdef inline lay_limits limits_of(given):
    """A layerstore.limits.Limits, or anything with these numbers; None: the core's own."""
    cdef lay_limits l = lay_limits_default()[0]
    cdef const char *option = NULL
    cdef size_t i = 0
    while given is not None and lay_limits_at(&l, i, &option) != NULL:
        lay_limits_at(&l, i, &option)[0] = getattr(given, option.decode())
        i += 1
    return l


cdef inline bytes shown(layers, list kept):
    """An array of lay_shown for the core, of descriptors and of what has _lower(); it holds as long as kept does."""
    cdef size_t i, n = len(layers)
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>((n + 1) * sizeof(lay_shown)))
    cdef lay_shown *to = <lay_shown *>PyBytes_AsString(packed)
    for i in range(n):
        layer = layers[i]
        to[i].fd, to[i].lower = -1, NULL
        if isinstance(layer, int):
            to[i].fd = layer
        else:
            capsule = layer._lower()
            kept.append(capsule)
            to[i].lower = <const lay_lower *>PyCapsule_GetPointer(capsule, "layerstore.lower")
    return packed


cdef inline int check_shown(lay_code code, lay_error *err, list kept) except -1:
    """check(), where layers were handed in: what is damaged in an image is said."""
    cdef const char *damage
    if code == LAY_E_OS and err.sys_errno == EUCLEAN:
        for capsule in kept:
            damage = lay_lower_damage(<const lay_lower *>PyCapsule_GetPointer(capsule, "layerstore.lower"))
            if damage != NULL:
                from layerstore.errors import from_core
                raise from_core(<int>LAY_E_MISMATCH, 0, -1, <bytes>err.path, damage.decode("utf-8", "replace"))
    return check(code, err)


# One user at a time, told by an atomic flag, so that it also holds where there is no GIL.
cdef extern from *:
    """
    #include <stdatomic.h>
    typedef struct lay_handle { void *c; atomic_int busy; } lay_handle;
    static inline int lay_handle_take(lay_handle *h) { int idle = 0; return atomic_compare_exchange_strong(&h->busy, &idle, 1); }
    static inline void lay_handle_give(lay_handle *h) { atomic_store(&h->busy, 0); }
    """
    ctypedef struct Handle "lay_handle":
        void *c       # the core's object; NULL once it is closed
    bint take "lay_handle_take"(Handle *h) nogil
    void give "lay_handle_give"(Handle *h) nogil


cdef inline int enter(Handle *h) except -1:
    """Become the one user of an open handle; give(h) ends it."""
    if not take(h):
        raise RuntimeError("in use by another thread")
    if h.c == NULL:
        give(h)
        raise RuntimeError("already closed")
    return 0
