/* inside.h - who is inside a mount: which processes use a file system, and where else it is mounted.
 *
 * A file system is named by its device number. Each function closes every descriptor that it opens.
 */
#ifndef LAY_INSIDE_H
#define LAY_INSIDE_H

#include "lay.h"

/* What every process uses of the device: records of "pid use path\0".
 * use      'r' root, 'c' cwd, 'd' an open directory, 'w' open for writing, 's' mapped, shared, so that
 *          it can be written to, 'm' mapped otherwise, 'f' open for reading
 * path     as /proc shows it: of a mapping "\012" stands for a line's end
 * ours     descriptors of this process that do not count
 * out      of malloc, for lay_uses_free(); size: its bytes
 * denied   how many processes could not be looked into
 */
lay_code lay_uses(
    unsigned major, unsigned minor, const int *ours, size_t n_ours, char **out, size_t *size, int *denied, lay_error *err);
void lay_uses_free(char *out);

/* The id of the mount at path, which no other mount ever has; 0: the kernel does not tell (before 6.8). */
uint64_t lay_mount_id(const char *path);

/* How often the device of the mount at path is mounted in our mount namespace, and in others: there it stops at the first
 * namespace that has it. Mounts that propagation made of the one at path do not count: they go with it.
 * first    the id of the first mount of the device, if that is known, else 0: the answer comes sooner where path has it
 * Less than 0: the kernel does not tell (before 6.11). */
void lay_count_mounts(const char *path, uint64_t first, unsigned major, unsigned minor, int *here, int *elsewhere);

#endif
