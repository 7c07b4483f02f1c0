/* unpack.c - tar events become a tree.
 *
 * One thread parses and does everything that has an order: directories, links, nodes, whiteouts, and
 * files that do not lie whole in one span. Whole small files go to the pool. What makes that safe is one
 * set of names: an entry whose name (or that of a parent still to be made) has been seen before waits
 * until the pool is empty. So no two jobs in the pool concern the same name, and a layer without
 * repetitions never waits.
 */
#include "apply/unpack.h"

#include "apply/unpack_implied.h"
#include "apply/unpack_marks.h"
#include "apply/unpack_names.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* ---- open and close ------------------------------------------------------------------------------ */

static lay_code is_empty(int root_fd, bool *empty, lay_error *err)
{
    lay_names names;
    LAY_AUTO_FD int fd = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return lay_fail_fd(err, errno, root_fd, "cannot read the layer's directory");
    if (lay_names_read(&names, fd, err))
        return err->code;
    *empty = !names.count;
    lay_names_free(&names);
    return LAY_OK;
}

lay_code lay_unpack_open(lay_unpack **out, const lay_unpack_options *o, lay_error *err)
{
    lay_unpack *u = calloc(1, sizeof *u);
    if (!u)
        return lay_fail_nomem(err);
    u->root_fd = o->root_fd;
    u->scratch_fd = o->scratch_fd;
    u->stash_fd = u->file_fd = -1;
    u->merged = o->merged;
    u->own_links = o->own_links;
    u->userxattr = o->flags & (LAY_APPLY_USERNS | LAY_APPLY_USERXATTR);
    u->ring = o->ring;
    u->limits = u->taken.limits = o->limits ? o->limits : lay_limits_default();
    lay_place_init(&u->place, o->flags & LAY_APPLY_USERNS);
    if (o->threads > 0)
        u->place.private_umask = lay_place_private_umask();
    u->tar = lay_tar_new();
    if (u->tar)
        lay_tar_limit(u->tar, u->limits);
    else
        lay_fail_nomem(err);
    if (!u->tar || lay_nameset_init(&u->seen, err) || lay_paths_init(&u->paths, err) || is_empty(o->root_fd, &u->fresh, err)
        || (o->threads > 0 && lay_pool_new(&u->pool, &u->place, o->ring, o->threads, err))) {
        lay_unpack_free(u);
        return err->code;
    }
    *out = u;
    return LAY_OK;
}

void lay_unpack_free(lay_unpack *u)
{
    if (!u)
        return;
    lay_pool_free(u->pool);
    lay_dirs_forget(&u->dirs);
    lay_dir_release(u->dir);
    lay_tar_free(u->tar);
    lay_nameset_free(&u->seen);
    if (u->file_fd >= 0)
        close(u->file_fd);
    lay_unpack_free_replaced(u);
    free(u->times);
    lay_paths_free(&u->paths);
    free(u->implied_ids);
    free(u->unsettled.p);
    free(u->first_left_out.p);
    free(u->clean.p);
    free(u->path.p);
    free(u->tried.p);
    free(u->linked_from.p);
    free(u->linked_to.p);
    free(u);
}

bool lay_unpack_ended(const lay_unpack *u) { return lay_tar_ended(u->tar); }
/* ---- entries ------------------------------------------------------------------------------------------------ */

/* again: something had its name before. */
static lay_code make_directory(lay_unpack *u, bool again, bool kept, lay_error *err)
{
    bool made;
    if ((again || u->merged) && lay_unpack_note(u, u->path.p, u->path.len, LAY_NAME_ENTRY, err))
        return err->code;
    made = !kept && mkdirat(u->dir->fd, u->base, u->meta.mode & 01777) == 0;
    if (!kept && !made)
        return lay_fail_os(err, errno, NULL, "cannot make the directory");
    if (lay_place_directory(&u->place, u->dir->fd, u->base, made, &u->meta, err) || (u->reborn && lay_unpack_mark_reborn(u, err)))
        return err->code;
    if (kept) {
        lay_dir *parent = u->dir;             /* one remembered may hand down now what it did not before */
        lay_dirs_forget(&u->dirs);
        lay_dirs_remember(&u->dirs, parent);
    }
    return lay_unpack_add_times(u, u->path.p, u->path.len, u->meta.times, err);
}

static lay_code find_target(lay_unpack *u, const lay_tar_entry *e, const lay_text *target, lay_error *err)
{
    bool aliased;
    return lay_unpack_find(u, target, &aliased, err) && err->code == LAY_E_OS ? lay_entry_link_failed(e, err->sys_errno, err) : err->code;
}

/* The entry's parent, base and path; u->dir and u->base are others while its target is looked for. */
typedef struct link_place { lay_dir *dir; char base[sizeof ((lay_unpack *)0)->base]; lay_text path; } link_place;

static void go_back(lay_unpack *u, const link_place *at)
{
    lay_dir_release(u->dir);
    u->dir = lay_dir_retain(at->dir);
    memcpy(u->base, at->base, sizeof at->base);
}

/* again: something had its name before; a link to itself leaves that as it is. */
static lay_code link_at(lay_unpack *u, const link_place *at, const lay_tar_entry *e, const lay_text *target, bool again, bool *hides, lay_error *err)
{
    bool kept;
    struct stat st;
    if (again) {
        if (find_target(u, e, target, err))
            return err->code;
        if (u->path.len == at->path.len && !memcmp(u->path.p, at->path.p, at->path.len)
            && fstatat(u->dir->fd, u->base, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode) && !lay_stat_is_whiteout(st.st_mode, st.st_rdev))
            return LAY_OK;
        go_back(u, at);
        if (lay_text_set(&u->path, at->path.p, at->path.len, err) || lay_unpack_make_way(u, e, &kept, err))
            return err->code;
    }
    if (find_target(u, e, target, err))
        return err->code;
    if (linkat(u->dir->fd, u->base, at->dir->fd, at->base, 0) == 0)
        return lay_place_link_meta(&u->place, at->dir->fd, at->base, &u->meta, hides, err);
    int failed = errno;
    if (failed == ENOENT && lay_unpack_is_hidden(u, u->path.p, u->path.len))
        return lay_unpack_hide(u, at->path.p, at->path.len, err);      /* a whiteout by another name */
    return lay_entry_link_failed(e, failed, err);
}

static lay_code make_link(lay_unpack *u, const lay_tar_entry *e, bool again, lay_error *err)
{
    LAY_AUTO_FREE lay_text target = { 0 };
    bool hides = false;
    if (lay_entry_target(e, &target, err))
        return err->code;
    link_place at = { .dir = lay_dir_retain(u->dir) };
    memcpy(at.base, u->base, sizeof at.base);
    if (!lay_text_set(&at.path, u->path.p, u->path.len, err) && !lay_unpack_drain(u, err))
        link_at(u, &at, e, &target, again, &hides, err);
    go_back(u, &at);
    lay_dir_release(at.dir);
    free(at.path.p);
    if (hides && !u->merged)
        lay_unpack_expect_whiteouts(u, err);
    return err->code;
}

static lay_code make_node(lay_unpack *u, const lay_tar_entry *e, lay_error *err)
{
    bool made;
    dev_t dev;
    if (e->type == '6')
        return lay_place_node(&u->place, u->dir->fd, u->base, S_IFIFO, 0, &u->meta, &made, err);
    if (lay_entry_device(e, &dev, err))
        return err->code;
    if (lay_stat_is_whiteout(e->type == '3' ? S_IFCHR : S_IFBLK, dev)) {      /* to overlayfs it is a whiteout */
        if (u->merged)
            return lay_unpack_hide(u, u->path.p, u->path.len, err);
        if (lay_unpack_expect_whiteouts(u, err))
            return err->code;
    }
    if (lay_place_node(&u->place, u->dir->fd, u->base, e->type == '3' ? S_IFCHR : S_IFBLK, dev, &u->meta, &made, err))
        return err->code;
    return made || u->left_out++ ? LAY_OK : lay_text_set(&u->first_left_out, u->path.p, u->path.len, err);
}

static lay_code entry(lay_unpack *u, const lay_tar_entry *e, lay_error *err)
{
    u->payload = PAYLOAD_NONE;
    bool seen = false, aliased, kept;
    lay_wh wh;
    if (lay_taken_entry(&u->taken, e, err) || e->type == 'g')
        return err->code;
    if (lay_entry_name(e, &u->clean, &wh, err) || lay_entry_is_root(&u->clean))
        return err->code;
    if (wh == LAY_WH_PLAIN && lay_unpack_seen(u, u->clean.p, u->clean.len, &seen, err))
        return err->code;
    if (lay_unpack_find(u, &u->clean, &aliased, err))
        return err->code;
    if (aliased && wh == LAY_WH_PLAIN) {
        bool ignored;
        if (lay_unpack_seen(u, u->path.p, u->path.len, &ignored, err))
            return err->code;
    }
    if (wh == LAY_WH_OPAQUE_DIR)
        return lay_unpack_opaque(u, err);
    if (wh == LAY_WH_NAME)
        return lay_unpack_whiteout(u, e, err);
    kept = u->reborn = false;
    bool again = seen || aliased || !u->fresh;
    if (again && e->type != '1' && lay_unpack_make_way(u, e, &kept, err))
        return err->code;
    if (lay_meta_of(&u->meta, e, err))
        return err->code;
    u->meta.inherits = u->dir->inherits;
    switch (e->type) {
    case '0':
    case 'S':
        u->payload = PAYLOAD_FILE;
        if (lay_taken_size(&u->taken, e->size, err))
            return err->code;
        return aliased && e->stored ? lay_unpack_note_alias(u, e->ordinal, err) : LAY_OK;
    case '5':
        return make_directory(u, again, kept, err);
    case '2':
        if (lay_entry_text(e, err) || lay_taken_size(&u->taken, (int64_t)e->link_len, err))
            return err->code;
        return lay_place_symlink(&u->place, u->dir->fd, u->base, e->link, &u->meta, err);
    case '1':
        return make_link(u, e, again, err);
    case '3':
    case '4':
    case '6':
        return make_node(u, e, err);
    default:
        return lay_entry_unhandled(e, err);
    }
}

/* ---- payload --------------------------------------------------------------------------------------------------- */

#define POSTED_XATTRS (16u << 10)   /* more than this does not wait in the pool's queue: it would be a lot of memory */

/* A copy of the xattrs in one piece: the job outlives the reader's buffers. *size: its bytes. */
static lay_code copy_xattrs(lay_meta *m, size_t *size, lay_error *err)
{
    *size = 0;
    if (!m->nxattrs)
        return LAY_OK;
    size_t bytes = m->nxattrs * sizeof(lay_xattr);
    for (size_t i = 0; i < m->nxattrs; i++)
        bytes += strlen(m->xattrs[i].name) + 1 + m->xattrs[i].len;
    *size = bytes;
    lay_xattr *copy = malloc(bytes);
    if (!copy)
        return lay_fail_nomem(err);
    char *at = (char *)(copy + m->nxattrs);
    for (size_t i = 0; i < m->nxattrs; i++) {
        size_t n = strlen(m->xattrs[i].name) + 1, len = m->xattrs[i].len;
        memcpy(at, m->xattrs[i].name, n);
        copy[i].name = at;
        at += n;
        if (len)
            memcpy(at, m->xattrs[i].value, len);
        copy[i].value = (const uint8_t *)at;
        copy[i].len = len;
        at += len;
    }
    m->xattrs = copy;
    return LAY_OK;
}

/* The whole file at once: by the pool, or here. */
static lay_code whole_file(lay_unpack *u, const lay_tar_entry *e, const uint8_t *p, size_t n, const lay_span *span, lay_error *err)
{
    lay_job job = { .dir = u->dir, .p = p, .n = n, .slot = -1, .meta = u->meta, .offset = e->offset };
    size_t copied;
    if (copy_xattrs(&job.meta, &copied, err))
        return err->code;
    if (!job.meta.nxattrs)
        job.meta.xattrs = NULL;
    memcpy(job.name, u->base, strlen(u->base) + 1);
    lay_dir_retain(u->dir);
    u->payload = PAYLOAD_NONE;
    if (!u->pool || copied > POSTED_XATTRS)
        return lay_job_run(&u->place, u->ring, &job, err);
    if (n && u->ring) {
        lay_ring_hold(u->ring, span->slot);
        job.slot = (int)span->slot;
    }
    return lay_pool_post(u->pool, &job) ? LAY_OK : lay_pool_drain(u->pool, err);
}

/* A file that is written as its bytes come. */
static lay_code open_file(lay_unpack *u, lay_error *err)
{
    u->file_fd = lay_place_create(&u->place, u->dir->fd, u->base, &u->meta);
    if (u->file_fd < 0)
        return lay_fail_os(err, errno, NULL, "cannot make the file");
    u->file_end = 0;
    u->payload = PAYLOAD_OPEN;
    return LAY_OK;
}

static lay_code data(lay_unpack *u, const lay_tar_item *item, const lay_span *span, lay_error *err)
{
    const lay_tar_entry *e = item->entry;
    if (u->payload == PAYLOAD_NONE)
        return LAY_OK;
    if (u->payload == PAYLOAD_FILE) {
        if (!e->sparse && (int64_t)item->n == e->stored)
            return whole_file(u, e, item->p, item->n, span, err);
        if (open_file(u, err))
            return err->code;
    }
    int failed = lay_place_write(u->file_fd, item->p, item->n, item->file_offset, &u->file_end);
    return failed ? lay_fail_os(err, failed, NULL, "cannot write the file") : LAY_OK;
}

static lay_code done(lay_unpack *u, const lay_tar_entry *e, const lay_span *span, lay_error *err)
{
    if (u->payload == PAYLOAD_FILE) {         /* nothing stored: empty, or one hole */
        if (!e->sparse || !e->size)
            return whole_file(u, e, NULL, 0, span, err);
        if (open_file(u, err))
            return err->code;
    }
    if (u->payload != PAYLOAD_OPEN)
        return LAY_OK;
    /* The reader's xattrs are still there: it keeps them until the next entry. */
    u->payload = PAYLOAD_NONE;
    if (lay_place_finish(&u->place, u->file_fd, u->file_end, e->size, &u->meta, err))
        return err->code;
    return close(lay_steal_fd(&u->file_fd)) != 0 ? lay_fail_os(err, errno, NULL, "cannot write the file") : LAY_OK;
}

/* An error of a file still in the pool came earlier in the tar: it is the one to tell. */
static lay_code earliest(lay_unpack *u, lay_error *err)
{
    lay_error pooled;
    lay_error_clear(&pooled);
    if (lay_unpack_drain(u, &pooled) && (err->offset < 0 || pooled.offset < err->offset))
        *err = pooled;
    return err->code;
}

lay_code lay_unpack_add(lay_unpack *u, const lay_span *span, lay_error *err)
{
    lay_tar_item item;
    lay_tar_event event;
    if (lay_tar_ended(u->tar))
        return LAY_OK;
    lay_tar_feed(u->tar, span->p, span->n);
    while ((event = lay_tar_next(u->tar, &item, err)) > LAY_TAR_NEED) {
        lay_code code = event == LAY_TAR_ENTRY ? entry(u, item.entry, err)
            : event == LAY_TAR_DATA ? data(u, &item, span, err)
            : event == LAY_TAR_DONE ? done(u, item.entry, span, err) : LAY_OK;
        if (code) {
            lay_entry_failed(item.entry, err);
            return earliest(u, err);
        }
        if (event == LAY_TAR_END)
            break;
    }
    return event == LAY_TAR_BAD ? earliest(u, err) : LAY_OK;
}

static lay_code set_directory_times(lay_unpack *u, lay_error *err)
{
    LAY_AUTO_FD int last = -1;                /* of the directory before: the next one lies in it, often */
    uint32_t last_id = LAY_PATHS_ROOT;
    for (size_t i = 0; i < u->ntimes; i++) {
        const dir_times *t = &u->times[i];
        if (lay_paths_get(&u->paths, t->path, &u->path, err))
            return err->code;
        const lay_path_node *node = &u->paths.nodes[t->path];
        bool near = last >= 0 && node->above == last_id;
        size_t skip = near ? u->path.len - node->len : 0;
        LAY_AUTO_FD int fd = lay_tree_open_dir(near ? last : u->root_fd, u->path.p + skip, u->path.len - skip, 0);
        if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
            continue;                         /* a later entry took its place */
        if (fd < 0 || futimens(fd, t->times) != 0)
            return lay_fail_os(err, errno, u->path.p, "cannot set the directory's times");
        lay_close_owner(&last);
        last = lay_steal_fd(&fd);
        last_id = t->path;
    }
    return LAY_OK;
}

lay_code lay_unpack_end(lay_unpack *u, lay_applied *out, lay_error *err)
{
    if (!lay_tar_ended(u->tar) && lay_tar_eof(u->tar, err))
        return earliest(u, err);
    if (lay_unpack_drain(u, err))
        return err->code;
    lay_dir_release(u->dir);
    u->dir = NULL;
    lay_dirs_forget(&u->dirs);
    if (set_directory_times(u, err) || lay_unpack_implied_left(u, err))
        return err->code;
    out->size = u->merged ? u->taken.header_sizes : u->taken.size;
    out->left_out = (int64_t)u->left_out;
    out->first_left_out = u->left_out ? u->first_left_out.p : "";
    out->unsettled = u->unsettled.p;
    out->unsettled_len = u->unsettled.len;
    if (u->scratch_fd < 0)                    /* else the record's writer counts them */
        out->entries = (int64_t)u->taken.entries;
    return u->merged || (u->fresh && !u->replaced) ? LAY_OK : lay_tree_size(u->root_fd, &out->size, err);
}

