/* switch.h - whether a mount is in use, and another mount under its path.
 *
 * The path is that of a mount's root. Each function closes every descriptor that it opens, but the one it gives.
 */
#ifndef LAY_SWITCH_H
#define LAY_SWITCH_H

#include "lay.h"

/* 1: this kernel can put a mount beneath another one (6.5), and makes overlays of any depth by the new calls (6.8). */
int lay_can_switch(void);

/* inside: something uses the mount at path: a root, a working directory, any descriptor, any map, a mount below it.
 * A use that ends within a millisecond does not count. Other mounts of its file system are not seen.
 * No two processes may ask at once. LAY_E_OS: EINVAL: nothing is mounted there. */
lay_code lay_mount_is_used(const char *path, int *inside, lay_error *err);

/* Put a detached mount in the place of the one at path; no look-up sees anything between. The mount's descriptor stays
 * the caller's.
 * lazy     replace it also while it is used: who uses it keeps it
 * old      a clone of the old mount, as a descriptor: closing it ends its file system, if nothing else uses that; else -1
 * done     1: path shows the new mount
 * busy     1: it is used, and path shows it still. The new mount lies beneath, unseen, until the old one is unmounted */
lay_code lay_switch_mount(const char *path, int mount, int lazy, int *old, int *done, int *busy, lay_error *err);

/* Make the file system of a mount, a descriptor, read-only. busy: a file has been open for writing for a millisecond. */
lay_code lay_stop_writes(int mount, int *busy, lay_error *err);

#endif
