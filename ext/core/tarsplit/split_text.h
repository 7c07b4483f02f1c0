/* split_text.h - the words of a tar-split line: base64 and JSON text, written as Go's encoding/json
 * writes them and read as any JSON may be. No I/O, no state. */
#ifndef LAY_SPLIT_TEXT_H
#define LAY_SPLIT_TEXT_H

#include "base/error.h"

static inline size_t lay_base64_room(size_t n) { return (n + 2) / 3 * 4; }
/* Writes exactly lay_base64_room(n) characters. */
void lay_base64_encode(const uint8_t *p, size_t n, char *out);
/* Standard alphabet with padding; *len bytes to out (room n / 4 * 3). False: not base64. */
bool lay_base64_decode(const char *p, size_t n, uint8_t *out, size_t *len);

/* As Go's utf8.Valid. */
bool lay_utf8_valid(const char *p, size_t n);
/* The text between the quotes; out has room for 6 * n. Returns the length. p is valid UTF-8. */
size_t lay_json_escape(const char *p, size_t n, char *out);

/* One object of a record. Strings point into the text (still escaped or encoded) or are NULL. */
typedef struct lay_json_line {
    int64_t type, size;
    const char *name; size_t name_len;
    const char *name_raw; size_t name_raw_len;
    const char *payload; size_t payload_len;   /* NULL: null or absent */
} lay_json_line;

typedef enum lay_json { LAY_JSON_OK, LAY_JSON_MORE, LAY_JSON_BAD } lay_json;
/* Parses one object at p; *used bytes. MORE: the object goes on after n bytes. Keys are matched without
 * regard to case, unknown ones are passed over. */
lay_json lay_json_object(const char *p, size_t n, lay_json_line *line, size_t *used);
/* Undoes the escapes of a JSON string: *len bytes to out, never more than n, which is the room it needs. A lone
 * surrogate becomes U+FFFD, as in Go. False: an escape that is none. */
bool lay_json_unescape(const char *p, size_t n, char *out, size_t *len);

#endif
