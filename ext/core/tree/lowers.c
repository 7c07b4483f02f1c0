/* lowers.c - one path asked of layer after layer, downwards, until one has it or hides it. */
#include "tree/lowers.h"

#include "tree/whiteout.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>

lay_code lay_lowers_open(lay_lowers *l, const int *fds, size_t count, bool userxattr, lay_error *err)
{
    *l = (lay_lowers){ .userxattr = userxattr };
    if (!count)
        return LAY_OK;
    l->fds = calloc(count, sizeof *l->fds);
    if (!l->fds)
        return lay_fail_nomem(err);
    for (; l->count < count; l->count++) {
        l->fds[l->count] = fcntl(fds[l->count], F_DUPFD_CLOEXEC, 0);
        if (l->fds[l->count] < 0)
            return lay_fail_os(err, errno, NULL, "cannot keep a lower layer's directory");
    }
    return LAY_OK;
}

void lay_lowers_free(lay_lowers *l)
{
    for (size_t i = 0; i < l->count; i++)
        close(l->fds[i]);
    free(l->fds);
    *l = (lay_lowers){ 0 };
}

typedef enum answer { ABSENT, SHOWN, HIDDEN, ASK_ERROR } answer;

/* One layer. *last: none below it is seen through here. */
static answer ask(int root_fd, const char *path, size_t n, bool userxattr, bool *last)
{
    const char *xattr = lay_opaque_xattr(userxattr);
    LAY_AUTO_FD int dir = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (const char *part = path; dir >= 0;) {
        char name[NAME_MAX + 1];
        const char *slash = memchr(part, '/', n - (size_t)(part - path));
        size_t len = slash ? (size_t)(slash - part) : n - (size_t)(part - path);
        struct stat st;
        if (len > NAME_MAX)
            return ABSENT;
        memcpy(name, part, len);
        name[len] = '\0';
        char value;
        if (part != path && lay_tree_getxattr(dir, ".", xattr, &value, 1) == 1 && value == 'y')
            *last = true;                     /* overlayfs does not look at the root's */
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
            return errno == ENOENT ? ABSENT : ASK_ERROR;
        if (lay_stat_is_whiteout(st.st_mode, st.st_rdev))
            return HIDDEN;
        if (!slash)
            return SHOWN;
        if (!S_ISDIR(st.st_mode))
            return HIDDEN;
        int next = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        lay_close_owner(&dir);
        dir = next;
        part = slash + 1;
    }
    return ASK_ERROR;
}

int lay_lowers_show(const lay_lowers *l, const char *path, size_t n)
{
    bool last = false;
    for (size_t i = 0; i < l->count && !last; i++) {
        answer a = ask(l->fds[i], path, n, l->userxattr, &last);
        if (a == ASK_ERROR)
            return -1;
        if (a != ABSENT)
            return a == SHOWN;
    }
    return 0;
}
