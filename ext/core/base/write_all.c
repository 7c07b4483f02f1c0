/* write_all.c - all bytes or an errno. */
#include "base/write_all.h"

int lay_write_all(int fd, const void *p, size_t n, int64_t offset)
{
    for (size_t done = 0; done < n;) {
        const uint8_t *at = (const uint8_t *)p + done;
        ssize_t w = offset < 0 ? write(fd, at, n - done) : pwrite(fd, at, n - done, offset + (int64_t)done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return w < 0 ? errno : ENOSPC;
        done += (size_t)w;
    }
    return 0;
}
