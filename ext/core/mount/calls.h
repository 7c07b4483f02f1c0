/* calls.h - the new mount calls. They have the same numbers on every architecture; old C libraries lack their names. */
#ifndef LAY_MOUNT_CALLS_H
#define LAY_MOUNT_CALLS_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#define SYS_fspick 433
#endif
#define CLOSES_ON_EXEC O_CLOEXEC                       /* open_tree */
enum {
    SET_FLAG = 0, SET_STRING = 1, CMD_CREATE = 6, CMD_RECONFIGURE = 7,      /* fsconfig */
    FS_CLOEXEC = 1,                                    /* fsopen, fsmount, fspick */
    PICK_EMPTY_PATH = 8,                               /* fspick */
    FROM_EMPTY_PATH = 4, TO_EMPTY_PATH = 0x40, BENEATH = 0x200,             /* move_mount */
    CLONE_OF_A_MOUNT = 1                               /* open_tree */
};

static inline int lay_open_context(const char *type)
{
    return (int)syscall(SYS_fsopen, type, FS_CLOEXEC);
}

/* An option that is NULL is left out. False: errno. */
static inline bool lay_option(int context, const char *key, const char *value)
{
    return !value || syscall(SYS_fsconfig, context, SET_STRING, key, value, 0) == 0;
}

static inline bool lay_flag(int context, const char *key)
{
    return syscall(SYS_fsconfig, context, SET_FLAG, key, NULL, 0) == 0;
}

static inline bool lay_create_context(int context)
{
    return syscall(SYS_fsconfig, context, CMD_CREATE, NULL, NULL, 0) == 0;
}

/* A mount that is attached nowhere, as a descriptor. */
static inline int lay_take_mount(int context)
{
    return (int)syscall(SYS_fsmount, context, FS_CLOEXEC, 0);
}

static inline int lay_move_mount(int mount, const char *path, unsigned flags)
{
    return (int)syscall(SYS_move_mount, mount, "", AT_FDCWD, path, flags);
}

#endif
