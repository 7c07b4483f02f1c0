/* Who is inside a mount: which processes use a file system, where else it is mounted, whether an upper is in use.
 *
 * A file system is named by its device number. Every function is whole by
 * itself: a descriptor it opens it also closes; 0 or more is the answer, less than 0 a negative errno.
 */
#ifndef LAY_INSIDE_H
#define LAY_INSIDE_H
#include <stddef.h>

/* What every process uses of the device: records of "pid use path\0", in the order of the pids.
 * use    'r' root, 'c' cwd, 'd' an open directory, 'w' open for writing, 'm' mapped, 'f' open for reading
 * path   as /proc shows it: of a mapping "\012" stands for a line's end
 * ours   descriptors of this process that do not count
 * out    of malloc, for lay_uses_free(); size: its bytes
 * Returns how many processes could not be looked into.
 */
int lay_uses(unsigned major, unsigned minor, const int *ours, size_t n_ours, char **out, size_t *size);
void lay_uses_free(char *out);

/* How often the device is mounted in our mount namespace, and in others: there not 0 is enough, and it may be more.
 * Returns 0; -ENOTTY, -ENOSYS, -EPERM where the kernel does not tell.
 */
int lay_count_mounts(unsigned major, unsigned minor, int *here, int *elsewhere);

/* 1: an overlay, attached or not, has this directory as its upper; 0: none has. Not for a user namespace, where the
 * kernel takes no file handles and so has no index: the answer is 0 there. */
int lay_upper_in_use(const char *upper);

#endif
