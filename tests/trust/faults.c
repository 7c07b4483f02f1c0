/* faults.c - the n-th system call of a kind fails, in whichever thread makes it.
 *
 * A seccomp filter hands the named calls of this thread, and of all it starts, to a supervisor thread of the same
 * process (seccomp_unotify(2), Linux 5.5). That one counts those of the armed kind and answers the chosen ones with an
 * errno; everything else goes on. The filter is there until the thread ends; the supervisor stays until the process does.
 * A close() that "fails" is carried out all the same, as every kernel does it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "which audit architecture is this?"
#endif
#define CALLS 1024                /* numbers of system calls are below this */

/* Newer than some headers. */
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, uint64_t)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1UL
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static const struct { const char *name; int number; } names[] = {
#define N(name) { #name, SYS_##name },
    N(openat) N(openat2) N(mkdirat) N(mknodat) N(symlinkat) N(linkat) N(write) N(pwrite64) N(writev) N(ftruncate)
    N(copy_file_range) N(sendfile) N(splice) N(fallocate) N(read) N(pread64) N(readlinkat) N(getdents64) N(newfstatat)
    N(fstat) N(statx) N(statfs) N(fstatfs) N(lseek) N(unlinkat) N(renameat2) N(fchmod) N(fchmodat) N(fchmodat2)
    N(fchown) N(fchownat) N(utimensat) N(setxattr) N(fsetxattr) N(lsetxattr) N(getxattr) N(fgetxattr) N(lgetxattr)
    N(listxattr) N(flistxattr) N(llistxattr) N(fsync) N(fdatasync) N(syncfs) N(close) N(flock) N(mount) N(umount2)
    N(fsopen) N(fsconfig) N(fsmount) N(move_mount) N(open_tree) N(mount_setattr) N(mmap) N(mremap) N(mprotect)
    N(clone) N(clone3) N(getrandom) N(pipe2) N(memfd_create) N(eventfd2) N(dup) N(dup3) N(fcntl) N(ioctl) N(unshare)
    N(chdir) N(fchdir)
    { "getxattrat", 464 }, { "listxattrat", 465 },
#ifdef SYS_renameat
    N(renameat)
#endif
#ifdef SYS_open
    N(open) N(mkdir) N(mknod) N(symlink) N(link) N(readlink) N(unlink) N(rmdir) N(rename) N(chmod) N(chown) N(lchown)
    N(stat) N(lstat) N(access) N(pipe) N(dup2)
#endif
#undef N
};

static struct {
    pthread_mutex_t lock;
    uint8_t armed[CALLS];
    int answer;                    /* errno */
    long first, last;              /* which of the armed calls fail, counted from 1 */
    long met, failed;
    int first_failed;              /* the number of the first that did */
    atomic_int listener;
} s = { .lock = PTHREAD_MUTEX_INITIALIZER, .listener = -1 };

/* The number of a call, or -1: this machine has none of that name. */
int faults_number(const char *name)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i].name, name) == 0)
            return names[i].number;
    return -1;
}

/* Of fcntl only what makes a descriptor. */
static bool is_meant(const struct seccomp_notif *asked)
{
    return asked->data.nr != SYS_fcntl || asked->data.args[1] == F_DUPFD || asked->data.args[1] == F_DUPFD_CLOEXEC;
}

static void answer(const struct seccomp_notif *asked, struct seccomp_notif_resp *given)
{
    int number = asked->data.nr;
    pthread_mutex_lock(&s.lock);
    if (number >= 0 && number < CALLS && s.armed[number] && is_meant(asked) && ++s.met >= s.first && s.met <= s.last) {
        if (s.failed++ == 0)
            s.first_failed = number;
        given->error = -s.answer;
    } else {
        given->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    }
    pthread_mutex_unlock(&s.lock);
    if (given->error && number == SYS_close)
        close((int)asked->data.args[0]);   /* descriptors are the process's, so it is the asker's */
}

static void *supervise(void *unused)
{
    (void)unused;
    while (s.listener < 0)
        usleep(100);
    ioctl(s.listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, (uint64_t)SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);   /* faster, where it is known */
    for (;;) {
        struct seccomp_notif asked;
        struct seccomp_notif_resp given;
        memset(&asked, 0, sizeof asked);
        if (ioctl(s.listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0)
            continue;              /* interrupted, or the asker is gone */
        memset(&given, 0, sizeof given);
        given.id = asked.id;
        answer(&asked, &given);
        ioctl(s.listener, SECCOMP_IOCTL_NOTIF_SEND, &given);
    }
    return NULL;
}

static int install(void)
{
    static struct sock_filter code[4 + 2 * CALLS];
    unsigned n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)names[i].number, 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { .len = (unsigned short)n, .filter = code };
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

/* Put the calling thread, and what it starts, under supervision. 0, or -errno. */
int faults_start(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&thread, NULL, supervise, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0)
        return -e;
    int listener = install();
    if (listener < 0)
        return -errno;
    s.listener = listener;
    return 0;
}

/* From now on the first-th to last-th of these calls fail with this errno. */
void faults_arm(const int *numbers, size_t n, int sys_errno, long first, long last)
{
    pthread_mutex_lock(&s.lock);
    memset(s.armed, 0, sizeof s.armed);
    for (size_t i = 0; i < n; i++)
        if (numbers[i] >= 0 && numbers[i] < CALLS)
            s.armed[numbers[i]] = 1;
    s.answer = sys_errno;
    s.first = first;
    s.last = last;
    s.met = s.failed = 0;
    pthread_mutex_unlock(&s.lock);
}

/* Calls no longer fail: how many were met, and how many of these failed. */
void faults_disarm(long *met, long *failed, int *first_failed)
{
    pthread_mutex_lock(&s.lock);
    memset(s.armed, 0, sizeof s.armed);
    *met = s.met;
    *failed = s.failed;
    *first_failed = s.failed ? s.first_failed : -1;
    pthread_mutex_unlock(&s.lock);
}
