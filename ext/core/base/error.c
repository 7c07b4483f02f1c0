/* error.c - makes, wraps and names a lay_error.
 *
 * A failure is written into the caller's struct, so failing never allocates. The text is put together
 * beside the struct first: a caller may wrap an error by passing that error's own text or path.
 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static lay_code set(lay_error *err, lay_code code, int sys_errno, int64_t offset, const char *text)
{
    err->code = code;
    err->sys_errno = sys_errno;
    err->offset = offset;
    err->path[0] = err->target[0] = '\0';
    memcpy(err->text, text, strlen(text) + 1);
    return code;
}

static void format_text(char text[LAY_ERROR_TEXT], const char *format, va_list args)
{
    if (vsnprintf(text, LAY_ERROR_TEXT, format, args) < 0)
        text[0] = '\0';
}

lay_code lay_fail(lay_error *err, lay_code code, const char *format, ...)
{
    char text[LAY_ERROR_TEXT];
    va_list args;
    va_start(args, format);
    format_text(text, format, args);
    va_end(args);
    return set(err, code, 0, -1, text);
}

lay_code lay_fail_at(lay_error *err, lay_code code, int64_t offset, const char *format, ...)
{
    char text[LAY_ERROR_TEXT];
    va_list args;
    va_start(args, format);
    format_text(text, format, args);
    va_end(args);
    return set(err, code, 0, offset, text);
}

lay_code lay_fail_os(lay_error *err, int sys_errno, const char *path, const char *what)
{
    char text[LAY_ERROR_TEXT], room[128], kept[LAY_ERROR_PATH];
    const char *reason = strerror_r(sys_errno, room, sizeof room);
    if (what)
        snprintf(text, sizeof text, "%s: %s", what, reason);
    else
        snprintf(text, sizeof text, "%s", reason);
    size_t n = 0;
    if (path) {
        n = strnlen(path, sizeof kept - 1);
        bool whole = path[n] == '\0';
        memcpy(kept, path, n);
        if (!whole)
            memcpy(kept + n - 3, "...", 3);
    }
    set(err, LAY_E_OS, sys_errno, -1, text);
    memcpy(err->path, kept, n);
    err->path[n] = '\0';
    return LAY_E_OS;
}

lay_code lay_fail_fd(lay_error *err, int sys_errno, int fd, const char *what)
{
    static const char DELETED[] = " (deleted)", MEMORY[] = "/memfd:";
    char link[40], path[LAY_ERROR_PATH];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    size_t tail = sizeof DELETED - 1, len = strlen(path);
    if (len > tail && strcmp(path + len - tail, DELETED) == 0) {
        char *slash = strrchr(path, '/');
        if (strncmp(path, MEMORY, sizeof MEMORY - 1) == 0)     /* lies in no directory */
            path[0] = '\0';
        else if (slash)
            slash[slash == path] = '\0';
    }
    return lay_fail_os(err, sys_errno, path[0] == '/' ? path : NULL, what);
}

lay_code lay_fail_nomem(lay_error *err)
{
    return set(err, LAY_E_NOMEM, 0, -1, "out of memory");
}

lay_code lay_error_path(lay_error *err, const char *path, size_t n)
{
    if (err->path[0] != '\0')
        return err->code;
    const size_t room = sizeof err->path - 1;
    size_t kept = n < room ? n : room;
    memmove(err->path, path, kept);
    if (kept < n)
        memcpy(err->path + kept - 3, "...", 3);
    err->path[kept] = '\0';
    return err->code;
}

void lay_error_clear(lay_error *err)
{
    set(err, LAY_OK, 0, -1, "");
}
