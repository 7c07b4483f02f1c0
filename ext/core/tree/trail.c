/* trail.c - a way down a tree with few descriptors, and the inodes met. */
#include "tree/trail.h"

#include "base/grow.h"

#include <fcntl.h>
#include <string.h>

int lay_trail_fd(const lay_trail *t) { return t->keep[t->depth % LAY_TRAIL_KEEP]; }

static int trail_note(lay_trail *t, size_t depth, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0 || !lay_reserved(&t->nodes, &t->cap, depth + 1, sizeof *t->nodes))
        return -1;
    t->nodes[depth] = (lay_node){ st.st_dev, st.st_ino };
    return 0;
}

int lay_trail_open(lay_trail *t, int root_fd, bool one_fs)
{
    *t = (lay_trail)LAY_TRAIL_NONE;
    t->one_fs = one_fs;
    t->root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 3);
    /* opened anew: reading its names must not move the caller's descriptor */
    t->keep[0] = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return t->root_fd < 0 || t->keep[0] < 0 ? -1 : trail_note(t, 0, t->keep[0]);
}

int lay_trail_down(lay_trail *t, const char *name)
{
    bool crossed = false;
    LAY_AUTO_FD int fd = lay_tree_open_sub(lay_trail_fd(t), name, &crossed);
    if (fd < 0 || trail_note(t, t->depth + 1, fd) < 0)
        return -1;
    if (t->one_fs && (crossed || t->nodes[t->depth].dev != t->nodes[t->depth + 1].dev)) {
        errno = EBUSY;
        return -1;
    }
    t->depth++;
    int *slot = &t->keep[t->depth % LAY_TRAIL_KEEP];
    lay_close_owner(slot);
    *slot = lay_steal_fd(&fd);
    return 0;
}

/* Of a descriptor just opened: only if it is the directory that is wanted. */
static int trail_expect(int fd, lay_node want)
{
    struct stat st;
    int failed = fd >= 0 && fstat(fd, &st) != 0 ? errno : 0;
    if (fd < 0 || (!failed && st.st_ino == want.ino && st.st_dev == want.dev))
        return fd;
    close(fd);
    errno = failed ? failed : ENOENT;
    return -1;
}

int lay_trail_up(lay_trail *t, const char *path, size_t n)
{
    int *from = &t->keep[t->depth % LAY_TRAIL_KEEP];
    int *to = &t->keep[(t->depth - 1) % LAY_TRAIL_KEEP];
    lay_node want = t->nodes[t->depth - 1];
    if (*to < 0 && *from >= 0)
        *to = trail_expect(openat(*from, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC), want);
    if (*to < 0)     /* moved meanwhile: its old parent may still be where it was */
        *to = trail_expect(lay_tree_open_dir(t->root_fd, path, n, 0), want);
    if (*to < 0 && (t->depth == 1 || !lay_tree_gone(errno)))      /* the root is there: whatever is said of it is an error */
        return -1;
    lay_close_owner(from);
    *from = -1;
    t->depth--;
    return *to < 0;
}

void lay_trail_free(lay_trail *t)
{
    lay_close_owner(&t->root_fd);
    for (size_t i = 0; i < LAY_TRAIL_KEEP; i++)
        lay_close_owner(&t->keep[i]);
    free(t->nodes);
    *t = (lay_trail)LAY_TRAIL_NONE;
}

static lay_inode *inode_slot(lay_inode *slots, size_t mask, dev_t dev, ino_t ino)
{
    size_t i = ((size_t)ino * 0x9e3779b97f4a7c15u) ^ ((size_t)dev * 0xc2b2ae3d27d4eb4fu);
    for (i ^= i >> 29;; i++) {
        lay_inode *s = &slots[i & mask];
        if (!s->used || (s->ino == ino && s->dev == dev))
            return s;
    }
}

lay_code lay_inodes_add(lay_inodes *s, dev_t dev, ino_t ino, size_t *value, bool *seen, lay_error *err)
{
    if (s->slots == NULL || s->count > s->mask / 2) {
        size_t mask = s->slots == NULL ? 63 : s->mask * 2 + 1;
        lay_inode *slots = calloc(mask + 1, sizeof *slots);
        if (slots == NULL)
            return lay_fail_nomem(err);
        for (size_t i = 0; s->slots != NULL && i <= s->mask; i++)
            if (s->slots[i].used)
                *inode_slot(slots, mask, s->slots[i].dev, s->slots[i].ino) = s->slots[i];
        free(s->slots);
        s->slots = slots;
        s->mask = mask;
    }
    lay_inode *slot = inode_slot(s->slots, s->mask, dev, ino);
    *seen = slot->used;
    if (slot->used) {
        *value = slot->value;
    } else {
        *slot = (lay_inode){ dev, ino, *value, true };
        s->count++;
    }
    return LAY_OK;
}

void lay_inodes_free(lay_inodes *s)
{
    free(s->slots);
    *s = (lay_inodes){ 0 };
}
