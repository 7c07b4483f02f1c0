/* tar_write.c - an entry in, its header blocks out, to the byte as Go's archive/tar has them.
 *
 * USTAR when all of the entry fits there, PAX otherwise. A PAX header carries every string that is
 * long or not ASCII (a name that USTAR could have split too) and every number that is too big.
 * Source: Go, archive/tar writer.go, strconv.go, common.go (allowedFormats).
 */
#include "tar/tar.h"

#include "base/grow.h"

#include <stdio.h>
#include <string.h>

#define NAME_SIZE 100u
#define PREFIX_SIZE 155u
#define MAX_RECORDS 7
#define XATTR "SCHILY.xattr."
#define NUMBER_SIZE 40u       /* a time with its nanoseconds is the longest */

/* offset and length of each field of a header block */
enum { F_NAME = 0, F_MODE = 100, F_UID = 108, F_GID = 116, F_SIZE = 124, F_MTIME = 136, F_SUM = 148, F_TYPE = 156,
       F_LINK = 157, F_MAGIC = 257, F_MAJOR = 329, F_MINOR = 337, F_PREFIX = 345 };

typedef struct record { const char *prefix, *key; const char *value; size_t len; } record;

static bool is_ascii(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= 0x80 || s[i] == '\0')
            return false;
    return true;
}

static bool fits_octal(size_t width, int64_t x)
{
    return x >= 0 && x < (INT64_C(1) << ((width - 1) * 3));
}

static void put_octal(uint8_t *field, size_t width, int64_t x)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%0*llo", (int)(width - 1), (unsigned long long)(fits_octal(width, x) ? x : 0));
    memcpy(field, digits, (size_t)n + 1);
}

/* The string without its bytes beyond ASCII, cut to the field. */
static void put_string(uint8_t *field, size_t width, const char *s, size_t n)
{
    size_t w = 0, whole = 0;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)s[i] >= 0x80 || s[i] == '\0')
            continue;
        if (w < width)
            field[w++] = (uint8_t)s[i];
        whole++;
    }
    /* a cut name must not look like a directory's */
    if (whole > width && field[width - 1] == '/') {
        for (w = width - 1; w > 0 && field[w - 1] == '/';)
            w--;
        field[w] = '\0';
    }
}

static void put_seal(uint8_t block[LAY_TAR_BLOCK])
{
    memcpy(block + F_MAGIC, "ustar\00000", 8);
    memset(block + F_SUM, ' ', 8);
    unsigned sum = 0;
    for (size_t i = 0; i < LAY_TAR_BLOCK; i++)
        sum += block[i];
    put_octal(block + F_SUM, 7, sum);
}

/* The length of what goes before the last '/' that splits a long name; 0: it cannot be split. */
static size_t split_name(const char *name, size_t n)
{
    if (n <= NAME_SIZE || !is_ascii(name, n))
        return 0;
    size_t upto = n > PREFIX_SIZE + 1 ? PREFIX_SIZE + 1 : name[n - 1] == '/' ? n - 1 : n;
    const char *slash = memrchr(name, '/', upto);
    size_t at = slash ? (size_t)(slash - name) : 0;
    size_t rest = n - at - 1;
    return rest == 0 || rest > NAME_SIZE || at > PREFIX_SIZE ? 0 : at;
}

static size_t digits_of(size_t x)
{
    size_t n = 1;
    while (x >= 10)
        x /= 10, n++;
    return n;
}

/* "<length> <key>=<value>\n", whose length counts its own digits. */
static size_t record_size(const record *r)
{
    size_t bare = strlen(r->prefix) + strlen(r->key) + r->len + 3;
    size_t size = bare + digits_of(bare);
    return bare + digits_of(size);
}

static size_t put_record(uint8_t *out, const record *r)
{
    size_t size = record_size(r), prefix_len = strlen(r->prefix), key_len = strlen(r->key);
    char digits[24];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%zu ", size);
    memcpy(out, digits, n);
    memcpy(out + n, r->prefix, prefix_len);
    memcpy(out + n + prefix_len, r->key, key_len);
    n += prefix_len + key_len;
    out[n++] = '=';
    if (r->len > 0)
        memcpy(out + n, r->value, r->len);
    out[size - 1] = '\n';
    return size;
}

/* "dir/PaxHeaders.0/base", ASCII only, cut, without '/' at the end. */
static lay_code put_pax_name(uint8_t *field, const char *name, size_t n, lay_error *err)
{
    const char *slash = n > 0 ? memrchr(name, '/', n) : NULL;
    size_t dir = slash ? (size_t)(slash - name) + 1 : 0;
    size_t room;
    if (__builtin_add_overflow(n, sizeof "PaxHeaders.0/" + 2, &room))
        return lay_fail_nomem(err);
    LAY_AUTO_FREE char *joined = malloc(room);
    LAY_AUTO_FREE char *clean = malloc(room + 2);
    if (joined == NULL || clean == NULL)
        return lay_fail_nomem(err);
    memcpy(joined, name, dir);
    memcpy(joined + dir, "PaxHeaders.0/", 13);
    memcpy(joined + dir + 13, name + dir, n - dir);
    /* a walk's names are clean already but for the '/' after a directory's */
    size_t len = dir + 13 + n - dir, w = 0;
    while (len > 0 && joined[len - 1] == '/')
        len--;
    for (size_t i = 0; i < len && w < NAME_SIZE; i++)
        if ((unsigned char)joined[i] < 0x80 && joined[i] != '\0')
            clean[w++] = joined[i];
    while (w > 0 && clean[w - 1] == '/')
        w--;
    memcpy(field, clean, w);
    return LAY_OK;
}

static void put_main(uint8_t block[LAY_TAR_BLOCK], const lay_tar_head *h, bool pax)
{
    size_t prefix = pax ? 0 : split_name(h->name, h->name_len);
    size_t skip = prefix > 0 ? prefix + 1 : 0;
    put_string(block + F_NAME, NAME_SIZE, h->name + skip, h->name_len - skip);
    put_string(block + F_PREFIX, PREFIX_SIZE, h->name, prefix);
    put_string(block + F_LINK, NAME_SIZE, h->link, h->link_len);
    put_octal(block + F_MODE, 8, h->mode);
    put_octal(block + F_UID, 8, h->uid);
    put_octal(block + F_GID, 8, h->gid);
    put_octal(block + F_SIZE, 12, h->size);
    put_octal(block + F_MTIME, 12, h->mtime);
    put_octal(block + F_MAJOR, 8, h->dev_major);
    put_octal(block + F_MINOR, 8, h->dev_minor);
    block[F_TYPE] = (uint8_t)h->type;
    put_seal(block);
}

/* Seconds, and what is left of them without zeros at its end. */
static int print_time(char to[NUMBER_SIZE], int64_t sec, int32_t nsec)
{
    if (nsec == 0)
        return snprintf(to, NUMBER_SIZE, "%lld", (long long)sec);
    bool before = sec < 0;          /* -1.25 is two seconds before, and 0.75 after that */
    long long whole = before ? -(sec + 1) : sec;
    int n = snprintf(to, NUMBER_SIZE, "%s%lld.%09ld", before ? "-" : "", whole, before ? 1000000000L - nsec : (long)nsec);
    while (to[n - 1] == '0')
        n--;
    return n;
}

/* Everything that does not fit, by key in byte order; numbers are printed into room. */
static size_t pax_records(const lay_tar_head *h, record *list, char room[4][NUMBER_SIZE])
{
    size_t n = 0;
    const struct { const char *key; const char *text; size_t len; int64_t number; size_t width; } all[] = {
        { "gid", NULL, 0, h->gid, 8 },
        { "linkpath", h->link, h->link_len, 0, 0 },
        { "mtime", NULL, 0, h->mtime, 12 },
        { "path", h->name, h->name_len, 0, 0 },
        { "size", NULL, 0, h->size, 12 },
        { "uid", NULL, 0, h->uid, 8 },
    };
    if (h->capability != NULL)
        list[n++] = (record){ XATTR, "security.capability", (const char *)h->capability, h->capability_len };
    for (size_t i = 0; i < h->nxattrs; i++)
        list[n++] = (record){ XATTR, h->xattrs[i].name, (const char *)h->xattrs[i].value, h->xattrs[i].len };
    size_t printed = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i].width > 0) {
            bool parts = h->mtime_nsec != 0 && all[i].key[0] == 'm';
            if (fits_octal(all[i].width, all[i].number) && !parts)
                continue;
            char *to = room[printed++];
            int len = print_time(to, all[i].number, parts ? h->mtime_nsec : 0);
            list[n++] = (record){ "", all[i].key, to, (size_t)len };
        } else if (all[i].len > NAME_SIZE || !is_ascii(all[i].text, all[i].len)) {
            list[n++] = (record){ "", all[i].key, all[i].text, all[i].len };
        }
    }
    return n;
}

/* A long name that can be split is no reason for PAX, but has its record when there is one. */
static bool needs_pax(const lay_tar_head *h, const record *list, size_t n)
{
    return n > 1 || (n == 1 && (strcmp(list[0].key, "path") != 0 || split_name(h->name, h->name_len) == 0));
}

lay_code lay_tar_format(const lay_tar_head *head, uint8_t **out, size_t *cap, size_t *len, lay_error *err)
{
    record few[MAX_RECORDS];
    LAY_AUTO_FREE record *many = head->nxattrs > 0 ? reallocarray(NULL, head->nxattrs + MAX_RECORDS, sizeof *many) : NULL;
    record *list = head->nxattrs > 0 ? many : few;
    char room[4][NUMBER_SIZE];
    if (list == NULL)
        return lay_fail_nomem(err);
    size_t n = pax_records(head, list, room), data = 0, need = LAY_TAR_BLOCK;
    bool pax = needs_pax(head, list, n);
    if (head->name_len > LAY_TAR_MAX_EXTENSION || head->link_len > LAY_TAR_MAX_EXTENSION
        || head->capability_len > LAY_TAR_MAX_EXTENSION)
        data = LAY_TAR_MAX_EXTENSION + 1;
    for (size_t i = 0; pax && i < n && data <= LAY_TAR_MAX_EXTENSION; i++)
        data += record_size(&list[i]);
    if (data > LAY_TAR_MAX_EXTENSION)
        return lay_fail(err, LAY_E_LIMIT, "name and attributes take more than 1 MiB in a tar");
    if (pax)
        need += LAY_TAR_BLOCK + data + lay_tar_padding((int64_t)data);
    if (lay_reserve(out, cap, need, 1, err))
        return err->code;
    memset(*out, 0, need);
    uint8_t *at = *out;
    if (pax) {
        if (put_pax_name(at + F_NAME, head->name, head->name_len, err))
            return err->code;
        put_octal(at + F_MODE, 8, 0);
        put_octal(at + F_UID, 8, 0);
        put_octal(at + F_GID, 8, 0);
        put_octal(at + F_SIZE, 12, (int64_t)data);
        put_octal(at + F_MTIME, 12, 0);
        at[F_TYPE] = 'x';
        put_seal(at);
        uint8_t *to = at + LAY_TAR_BLOCK;
        for (size_t i = 0; i < n; i++)
            to += put_record(to, &list[i]);
        at = *out + need - LAY_TAR_BLOCK;
    }
    put_main(at, head, pax);
    *len = need;
    return LAY_OK;
}
