/* killwalk - count the system calls of a stopped child, all its threads, and kill it at the n-th.
 *
 * Enters: a child that has called killwalk_be_traced() and stopped itself; the tracer is its parent. Leaves: the child
 * is reaped. Nothing is counted before the stop nor after killwalk_end() in the child, so what is walked is exactly
 * what the child does between the two. A kill falls on the entry of a call: that call is no longer made.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <linux/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define END_MARK 0x6b77616c

struct killwalk {
    int64_t counted;    /* calls that count, up to the end mark or the kill */
    int64_t call;       /* number of the call that was not made */
    int32_t killed;
    int32_t status;     /* of waitpid */
};

int killwalk_be_traced(void) { return ptrace(PTRACE_TRACEME, 0, 0, 0) == 0 ? 0 : errno; }

void killwalk_end(void) { syscall(SYS_getpgid, END_MARK); }

/* Calls that change something others can see, or that name what is about to change. */
static int changes(uint64_t nr, const uint64_t *args)
{
    switch (nr) {
    case SYS_openat: return (args[2] & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) != 0;
#ifdef SYS_openat2
    case SYS_openat2: return 1; /* the flags are in the child's memory */
#endif
#ifdef SYS_open
    case SYS_open: return (args[1] & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) != 0;
    case SYS_creat: case SYS_mkdir: case SYS_rmdir: case SYS_unlink: case SYS_rename: case SYS_link: case SYS_symlink:
    case SYS_chmod: case SYS_chown: case SYS_lchown: case SYS_mknod: case SYS_utime: case SYS_utimes:
#endif
#ifdef SYS_renameat
    case SYS_renameat:
#endif
    case SYS_write: case SYS_pwrite64: case SYS_writev: case SYS_pwritev: case SYS_pwritev2:
    case SYS_copy_file_range: case SYS_sendfile: case SYS_splice: case SYS_io_uring_enter:
    case SYS_truncate: case SYS_ftruncate: case SYS_fallocate: case SYS_ioctl: case SYS_flock:
    case SYS_mkdirat: case SYS_mknodat: case SYS_linkat: case SYS_symlinkat: case SYS_renameat2: case SYS_unlinkat:
    case SYS_fchmod: case SYS_fchmodat: case SYS_fchown: case SYS_fchownat: case SYS_utimensat:
    case SYS_setxattr: case SYS_lsetxattr: case SYS_fsetxattr:
    case SYS_removexattr: case SYS_lremovexattr: case SYS_fremovexattr:
    case SYS_mount: case SYS_umount2: case SYS_fsopen: case SYS_fsconfig: case SYS_fsmount: case SYS_move_mount:
    case SYS_open_tree: case SYS_mount_setattr:
    case SYS_fsync: case SYS_fdatasync: case SYS_syncfs: case SYS_sync: case SYS_sync_file_range:
        return 1;
    default:
#ifdef SYS_fchmodat2
        if (nr == SYS_fchmodat2) return 1;
#endif
        return 0;
    }
}

/* Walk the child. at: kill at this call, counted from 1; 0: never. all: every call counts, else those that change. */
int killwalk_run(pid_t child, int64_t at, int all, struct killwalk *out)
{
    const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                         PTRACE_O_EXITKILL;
    int status, ended = 0;

    memset(out, 0, sizeof *out);
    if (waitpid(child, &status, __WALL) < 0)
        return errno;
    if (!WIFSTOPPED(status)) {
        out->status = status;
        return ECHILD;
    }
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options) || ptrace(PTRACE_SYSCALL, child, 0, 0))
        return errno;
    for (;;) {
        pid_t who = waitpid(-1, &status, __WALL);
        long deliver = 0;

        if (who < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (!WIFSTOPPED(status)) {
            if (who == child) {
                out->status = status;
                return 0;
            }
            continue;
        }
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            struct ptrace_syscall_info info;
            memset(&info, 0, sizeof info);
            if (ptrace(PTRACE_GET_SYSCALL_INFO, who, sizeof info, &info) > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY &&
                !ended && !out->killed) {
                uint64_t args[6];
                memcpy(args, info.entry.args, sizeof args);
                if (info.entry.nr == SYS_getpgid && args[0] == END_MARK) {
                    ended = 1;
                } else if ((all || changes(info.entry.nr, args)) && ++out->counted == at) {
                    out->killed = 1;
                    out->call = (int64_t)info.entry.nr;
                    kill(child, SIGKILL);
                    continue;
                }
            }
        } else if (status >> 16 == 0 && WSTOPSIG(status) != SIGSTOP && WSTOPSIG(status) != SIGTRAP) {
            deliver = WSTOPSIG(status);
        }
        ptrace(PTRACE_SYSCALL, who, 0, deliver);    /* fails only for who was killed meanwhile */
    }
}
