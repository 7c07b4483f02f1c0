/* lowers.c - one path asked of layer after layer, downwards, until one has it or hides it. */
#include "tree/lowers.h"

#include "tree/whiteout.h"

#include <limits.h>
#include <string.h>

lay_code lay_lowers_open(lay_lowers *l, const lay_shown *layers, size_t count, bool userxattr, lay_error *err)
{
    *l = (lay_lowers){ .list = calloc(count + 1, sizeof *l->list), .count = count, .userxattr = userxattr };
    if (!l->list)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < count; i++)
        l->list[i] = lay_lower_of(&layers[i]);
    return LAY_OK;
}

lay_code lay_lowers_keep(lay_lowers *l, lay_error *err)
{
    size_t count = l->count;
    l->kept = true;
    for (l->count = 0; l->count < count; l->count++) {        /* free() closes so many */
        lay_lower *one = &l->list[l->count];
        one->root = one->ops->open(one, one->root, "", 0);
        if (one->root < 0)
            return lay_fail_os(err, errno, NULL, "cannot keep a lower layer's directory");
    }
    return LAY_OK;
}

void lay_lowers_free(lay_lowers *l)
{
    for (size_t i = 0; l->kept && i < l->count; i++)
        l->list[i].ops->close(&l->list[i], l->list[i].root);
    free(l->list);
    *l = (lay_lowers){ 0 };
}

typedef enum answer { ABSENT, SHOWN, HIDDEN, FURTHER, ASK_ERROR } answer;

/* Of one name in a directory; is it the path's last one? */
static answer ask_name(const lay_lower *l, lay_lower_dir in, const char *name, bool is_last)
{
    struct stat st;
    if (l->ops->stat(l, in, name, &st) != 0)
        return errno == ENOENT ? ABSENT : ASK_ERROR;
    if (lay_stat_is_whiteout(st.st_mode, st.st_rdev))
        return HIDDEN;
    return is_last ? SHOWN : S_ISDIR(st.st_mode) ? FURTHER : HIDDEN;
}

/* One layer. *last: none below it is seen through here. */
static answer ask(const lay_lower *l, const char *path, size_t n, bool userxattr, bool *last)
{
    answer a = FURTHER;
    lay_lower_dir in = l->root;
    for (const char *part = path; a == FURTHER;) {
        char name[NAME_MAX + 1];
        const char *slash = memchr(part, '/', n - (size_t)(part - path));
        size_t len = slash ? (size_t)(slash - part) : n - (size_t)(part - path);
        if (len > NAME_MAX) {
            a = ABSENT;
            break;
        }
        memcpy(name, part, len);
        name[len] = '\0';
        *last |= part != path && lay_lower_is_opaque(l, in, userxattr);       /* overlayfs does not look at the root's */
        a = ask_name(l, in, name, slash == NULL);
        if (a == FURTHER) {
            lay_lower_dir next = l->ops->open(l, in, name, len);
            lay_lower_leave(l, in);
            in = next;
            part = slash + 1;
            a = next < 0 ? ASK_ERROR : FURTHER;
        }
    }
    lay_lower_leave(l, in);
    return a;
}

int lay_lowers_show(const lay_lowers *l, const char *path, size_t n)
{
    bool last = false;
    for (size_t i = 0; i < l->count && !last; i++) {
        answer a = ask(&l->list[i], path, n, l->userxattr, &last);
        if (a == ASK_ERROR)
            return -1;
        if (a != ABSENT)
            return a == SHOWN;
    }
    return 0;
}
