/* process.c - started by posix_spawn(3), followed by pidfds, ended by SIGKILL; never lost in between. */
#include "process/process.h"

#include "base/clock.h"
#include "base/error.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_send_signal 424
#endif
#define P_PIDFD 3             /* of waitid(2); an enumerator in newer headers */
#ifndef POSIX_SPAWN_SETSID
#define POSIX_SPAWN_SETSID 0x80
#endif

#define READY 1               /* ENTER_READY of ext/enter/enter.h */
#define ABOVE_ALL 64          /* copies of descriptors go there: dup2() to low numbers does not meet them */
#define READY_MS 5000         /* that a program may take to make the namespace once it is to end */
#define LEAVE_MS 2000         /* and to end itself, as it takes in pid 1 then */

struct lay_process {
    pid_t owner, pid;
    int ended;                /* pidfd of the program */
    int control;              /* our end of the socket */
    int first;                /* pidfd of pid 1, once it was ready */
    bool taken;               /* the program was waited for */
};

struct message { int32_t what, value; };

static int pidfd_of(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0u);
}

static void kill_by(int pidfd)
{
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0u);
}

static bool readable(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    int64_t until = lay_now_ms() + ms;
    int left = ms;
    int r;
    while ((r = poll(&p, 1, left)) < 0 && (errno == EINTR || errno == EAGAIN) && ms >= 0) {
        int64_t now = lay_now_ms();
        left = until > now ? (int)(until - now) : 0;
    }
    return r > 0;
}

/* ---- starting ---- */

typedef struct spawn {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    int *copies;
    size_t n_copies;
} spawn;

static int spawn_prepare(spawn *s, const int *fds, size_t n, int control)
{
    int e = 0;
    for (size_t i = 0; i < n && e == 0; i++) {
        int fd = fds[i] == LAY_PROCESS_CONTROL ? control : fds[i];
        if (fd < 0) {
            e = posix_spawn_file_actions_addclose(&s->actions, (int)i);
            continue;
        }
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, ABOVE_ALL);
        if (copy < 0)
            return errno;
        s->copies[s->n_copies++] = copy;
        e = posix_spawn_file_actions_adddup2(&s->actions, copy, (int)i);
    }
    sigset_t all, none;
    sigfillset(&all);
    sigemptyset(&none);
    if (e == 0)
        e = posix_spawnattr_setsigdefault(&s->attr, &all);
    if (e == 0)
        e = posix_spawnattr_setsigmask(&s->attr, &none);
    if (e == 0)
        e = posix_spawnattr_setflags(&s->attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    return e;
}

static int spawn_run(pid_t *pid, const char *program, const char *const *argv, const int *fds, size_t n, int control)
{
    LAY_AUTO_FREE int *copies = malloc((n + 1) * sizeof *copies);
    if (!copies)
        return ENOMEM;
    spawn s = { .copies = copies };
    int e = posix_spawn_file_actions_init(&s.actions);
    if (e)
        return e;
    e = posix_spawnattr_init(&s.attr);
    if (e == 0) {
        e = spawn_prepare(&s, fds, n, control);
        char *no_environment[] = { NULL };
        if (e == 0)
            e = posix_spawn(pid, program, &s.actions, &s.attr, (char *const *)(uintptr_t)argv, no_environment);
        posix_spawnattr_destroy(&s.attr);
    }
    posix_spawn_file_actions_destroy(&s.actions);
    for (size_t i = 0; i < s.n_copies; i++)
        close(copies[i]);
    return e;
}

lay_code lay_process_start(lay_process **out, const char *program, const char *const *argv, const int *fds, size_t n, lay_error *err)
{
    int ends[2];
    lay_error_clear(err);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return lay_fail_os(err, errno, NULL, "making a socket");
    LAY_AUTO_FD int ours = ends[0], theirs = ends[1];
    int on = 1;
    if (setsockopt(ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0)      /* a message tells its sender's pid */
        return lay_fail_os(err, errno, NULL, "making a socket");
    LAY_AUTO_FREE lay_process *p = calloc(1, sizeof *p);
    if (!p)
        return lay_fail_nomem(err);
    int e = spawn_run(&p->pid, program, argv, fds, n, theirs);
    if (e)
        return lay_fail_os(err, e, program, NULL);
    p->ended = pidfd_of(p->pid);                                           /* not waited for yet: it is this one */
    if (p->ended < 0) {
        e = errno;
        kill(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) {}
        return lay_fail_os(err, e, program, "following the process");
    }
    p->owner = getpid();
    p->control = lay_steal_fd(&ours);
    p->first = -1;
    *out = lay_steal(p);
    return LAY_OK;
}

/* ---- following ---- */

int lay_process_control(const lay_process *p) { return p->control; }

int lay_process_ended(const lay_process *p) { return p->ended; }

static pid_t sender_of(struct msghdr *head)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(head); c; c = CMSG_NXTHDR(head, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred who;
            memcpy(&who, CMSG_DATA(c), sizeof who);
            return who.pid;
        }
    return 0;
}

lay_code lay_process_next(lay_process *p, int *what, int *value, lay_error *err)
{
    struct message m = { 0, 0 };
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(struct ucred))]; } with;
    struct iovec span = { .iov_base = &m, .iov_len = sizeof m };
    struct msghdr head = { .msg_iov = &span, .msg_iovlen = 1, .msg_control = &with, .msg_controllen = sizeof with };
    ssize_t n;
    lay_error_clear(err);
    while ((n = recvmsg(p->control, &head, MSG_DONTWAIT)) < 0 && errno == EINTR) {}
    *what = *value = 0;
    if (n < 0 && errno == EAGAIN)
        return LAY_OK;
    if (n != (ssize_t)sizeof m) {                       /* its end; or the socket was reset */
        *what = LAY_PROCESS_GONE;
        return LAY_OK;
    }
    if (m.what == READY && p->first < 0) {
        pid_t pid = sender_of(&head);
        p->first = pid > 0 ? pidfd_of(pid) : -1;        /* it waits for us: it is this one */
        if (p->first < 0)
            return lay_fail_os(err, pid > 0 ? errno : ESRCH, NULL, "following the first process of the namespace");
    }
    *what = m.what;
    *value = m.value;
    return LAY_OK;
}

void lay_process_go(lay_process *p)
{
    while (send(p->control, "", 1, MSG_NOSIGNAL) < 0 && errno == EINTR) {}
}

/* ---- ending ---- */

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_all(lay_process *p)
{
    close_one(&p->control);
    close_one(&p->ended);
    close_one(&p->first);
}

/* Pid 1 cannot be named before it is ready, and the program alone cannot be killed without losing it. */
static void wait_until_ready(lay_process *p)
{
    lay_error err;
    int what = 0, value;
    int64_t until = lay_now_ms() + READY_MS;
    while (p->first < 0 && what != LAY_PROCESS_GONE && lay_now_ms() < until) {
        struct pollfd both[2] = { { .fd = p->control, .events = POLLIN }, { .fd = p->ended, .events = POLLIN } };
        if (poll(both, 2, READY_MS) < 0 && errno != EINTR)
            break;
        if (both[1].revents && !both[0].revents)
            break;
        if (lay_process_next(p, &what, &value, &err) != LAY_OK)
            break;
    }
}

void lay_process_end(lay_process *p)
{
    if (!p || p->taken || p->owner != getpid())
        return;
    if (p->first < 0)
        wait_until_ready(p);
    if (p->first >= 0) {
        kill_by(p->first);
        while (!readable(p->first, -1)) {}
    }
    close_one(&p->control);         /* what is not ready yet starts nothing */
    if (!readable(p->ended, LEAVE_MS))
        kill_by(p->ended);
    siginfo_t how;                  /* by the pidfd, as another thread may have waited for all children */
    while (waitid(P_PIDFD, (id_t)p->ended, &how, WEXITED) < 0 && errno == EINTR) {}
    p->taken = true;
    close_all(p);
}

void lay_process_free(lay_process *p)
{
    if (!p)
        return;
    lay_process_end(p);
    close_all(p);
    free(p);
}
