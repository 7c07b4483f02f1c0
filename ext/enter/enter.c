/* enter.c - the first process of a sandbox (pid 1 of its namespace): starts one command as the user asked for, and ends with it.
 *
 * Descriptors and a plan (enter.h) enter; messages on CONTROL leave. It waits for a byte on CONTROL before it starts the
 * command: the end of that socket is the death of the caller, and then nothing is started. As pid 1 ends, the kernel
 * kills what is left in the namespace. A file system without any library holds the command, so this is static and uses
 * system calls alone (calls.h). It keeps no right and cannot be traced, so the command cannot reach what it holds.
 */
#include "calls.h"
#include "enter.h"

#include <asm/ioctls.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <stddef.h>
#include <stdint.h>

#define MSG_NOSIGNAL 0x4000
#define SEEK_END 2
#define PATH_SIZE 4096
/* mount_setattr(2); older headers have neither. */
#define SET_READ_ONLY 0x01
struct setting { uint64_t set, clear, propagation, userns; };

/* What bubblewrap binds of the host: a chmod inside would change the host's own device. */
static const char *const devices[] = { "null", "zero", "full", "random", "urandom", "tty" };
/* What uid 0 may write below /proc, beside what bubblewrap is told to make read-only. */
static const char *const settings[] = { "fs", "acpi", "scsi", "driver", "mtrr" };
#define COUNT(list) (sizeof list / sizeof *list)

static void tell(int what, long value)
{
    struct enter_message m = { .what = what, .value = (int32_t)value };
    call6(__NR_sendto, CONTROL, (long)&m, sizeof m, MSG_NOSIGNAL, 0, 0);
}

__attribute__((noreturn)) static void end(int code)
{
    for (;;)
        call1(__NR_exit_group, code);
}

__attribute__((noreturn)) static void fail(int what, long error)
{
    tell(what, -error);
    end(127);
}

static size_t length(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

/* The bytes of text to out[n...], as far as PATH_SIZE goes; returns the new n. */
static size_t put(char *out, size_t n, const char *text, size_t size)
{
    for (size_t i = 0; i < size && n < PATH_SIZE; i++)
        out[n++] = text[i];
    return n;
}

static void *room(size_t size, int fd)
{
    long at = call6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    if (at < 0 && at > -4096)
        fail(ENTER_SETUP, at);
    return (void *)at;
}

/* ---- pid 1 ---- */

static void join(char *out, const char *directory, const char *name)
{
    size_t n = put(out, 0, directory, length(directory));
    n = put(out, n, "/", 1);
    out[put(out, n, name, length(name))] = 0;
}

static long make_read_only(const char *path, long flags)
{
    struct setting read_only = { .set = SET_READ_ONLY };
    long r = call5(__NR_mount_setattr, AT_FDCWD, (long)path, 0, (long)&read_only, sizeof read_only);
    if (r == -ENOSYS)
        r = call5(__NR_mount, 0, (long)path, 0, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, 0);
    return r;
}

/* Which of the names are there depends on the kernel. An open device stays as it was for reading and writing. */
static long protect(const char *proc, const char *dev)
{
    char path[PATH_SIZE + 1];
    long r = 0;
    for (size_t i = 0; i < COUNT(devices) && (r == 0 || r == -ENOENT); i++) {
        join(path, dev, devices[i]);
        r = make_read_only(path, MS_NOSUID);
    }
    for (size_t i = 0; i < COUNT(settings) && (r == 0 || r == -ENOENT); i++) {
        join(path, proc, settings[i]);
        r = call5(__NR_mount, (long)path, (long)path, 0, MS_BIND, 0);
        if (r == 0)
            r = make_read_only(path, MS_NOSUID | MS_NODEV | MS_NOEXEC);
    }
    return r == -ENOENT ? 0 : r;
}

static void drop_bounds(uint64_t kept)
{
    for (int cap = 0; cap < 64; cap++)
        if (!(kept >> cap & 1) && call5(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0) == -EINVAL)
            break;
}

static long set_rights(uint64_t kept)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = 0 };
    struct __user_cap_data_struct data[2] = {
        { .effective = (uint32_t)kept, .permitted = (uint32_t)kept, .inheritable = 0 },
        { .effective = (uint32_t)(kept >> 32), .permitted = (uint32_t)(kept >> 32), .inheritable = 0 },
    };
    return call2(__NR_capset, (long)&head, (long)data);
}

static void close_between(unsigned first, unsigned last)
{
    if (call3(__NR_close_range, first, last, 0) == 0)
        return;
    for (unsigned fd = first; fd <= last && fd < 65536; fd++)       /* before Linux 5.9 */
        call1(__NR_close, fd);
}

/* Take in whatever dies in the namespace, up to the command itself. */
__attribute__((noreturn)) static void wait_for(long pid)
{
    int status = 0;
    for (;;) {
        long dead = call4(__NR_wait4, -1, (long)&status, 0, 0);
        if (dead == pid || (dead < 0 && dead != -EINTR))
            break;
    }
    tell(ENTER_ENDED, status);
    end(0);
}

/* ---- the command ---- */

/* Whatever the caller ignores or blocks. */
static void reset_signals(void)
{
    uint64_t as_ever[4] = { 0 };                       /* sigaction: SIG_DFL, no flags, no restorer, an empty mask */
    for (int number = 1; number <= 64; number++)
        call4(__NR_rt_sigaction, number, (long)as_ever, 0, 8);
    call4(__NR_rt_sigprocmask, SIG_SETMASK, (long)as_ever, 0, 8);
}

static void stand_in(int target, int fd)
{
    long r = call3(__NR_dup3, fd, target, 0);
    if (r < 0)
        fail(ENTER_SETUP, r);
}

static void become(const struct enter_plan *plan)
{
    uint64_t kept = plan->uid == 0 ? plan->rights : 0;
    drop_bounds(kept);
    call5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    long r = plan->flags & ENTER_KEEP_GROUPS ? 0 : call2(__NR_setgroups, 0, 0);
    if (r == 0)
        r = call3(__NR_setresgid, plan->gid, plan->gid, plan->gid);
    if (r == 0)
        r = call3(__NR_setresuid, plan->uid, plan->uid, plan->uid);
    if (r == 0)
        r = set_rights(kept);
    if (r < 0)
        fail(ENTER_USER, r);
}

static const char *search_path(char *const *env)
{
    for (; *env; env++) {
        const char *e = *env;
        if (e[0] == 'P' && e[1] == 'A' && e[2] == 'T' && e[3] == 'H' && e[4] == '=')
            return e + 5;
    }
    return "";
}

/* As execvp(3): a name without '/' is looked for in each directory of PATH. A file that may not be executed is told
 * if no other directory has one that may. */
__attribute__((noreturn)) static void execute(char *const *argv, char *const *env)
{
    const char *name = argv[0];
    size_t n = length(name);
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/')
            fail(ENTER_EXEC, call3(__NR_execve, (long)name, (long)argv, (long)env));
    long seen = -ENOENT;
    const char *at = search_path(env);
    for (bool more = n > 0; more;) {
        size_t size = 0;
        while (at[size] && at[size] != ':')
            size++;
        char path[PATH_SIZE + 1];
        size_t end_of = put(path, 0, at, size);
        if (size > 0)                                  /* an empty one is the working directory */
            end_of = put(path, end_of, "/", 1);
        end_of = put(path, end_of, name, n);
        path[end_of] = 0;
        long r = end_of < PATH_SIZE ? call3(__NR_execve, (long)path, (long)argv, (long)env) : -ENAMETOOLONG;
        if (r == -EACCES)
            seen = r;
        else if (r != -ENOENT && r != -ENOTDIR && r != -ENAMETOOLONG)
            fail(ENTER_EXEC, r);
        more = at[size] == ':';
        at += size + 1;
    }
    fail(ENTER_EXEC, seen);
}

__attribute__((noreturn)) static void begin(const struct enter_plan *plan, const char *directory, char *const *argv, char *const *env)
{
    call0(__NR_setsid);
    if (plan->flags & ENTER_NO_INPUT) {
        long null = call4(__NR_openat, AT_FDCWD, (long)"/dev/null", O_RDONLY, 0);
        if (null < 0)
            fail(ENTER_SETUP, null);
        stand_in(0, (int)null);
    } else {
        stand_in(0, INPUT);
    }
    stand_in(1, OUTPUT);
    stand_in(2, ERRORS);
    call3(__NR_fcntl, CONTROL, F_SETFD, FD_CLOEXEC);
    close_between(CONTROL + 1, ~0u);
    call1(__NR_umask, 022);
    reset_signals();
    become(plan);
    long r = call1(__NR_chdir, (long)directory);
    if (r < 0)
        fail(ENTER_DIRECTORY, r);
    execute(argv, env);
}

/* ---- */

/* Take so many strings from the plan, as an array that ends with NULL. */
static char **take(char **text, size_t count)
{
    char **list = room((count + 1) * sizeof *list, -1);
    for (size_t i = 0; i < count; i++) {
        list[i] = *text;
        *text += length(*text) + 1;
    }
    list[count] = NULL;
    return list;
}

__attribute__((noreturn, used)) void enter(void)
{
    call5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    call5(__NR_prctl, PR_SET_NAME, (long)"enter", 0, 0, 0);
    long size = call3(__NR_lseek, PLAN, 0, SEEK_END);
    if (size < 0)
        fail(ENTER_SETUP, size);
    if ((size_t)size <= sizeof(struct enter_plan))
        fail(ENTER_SETUP, -EINVAL);
    const struct enter_plan *plan = room((size_t)size, PLAN);
    char *text = (char *)(plan + 1);
    char **directories = take(&text, 3);
    char **argv = take(&text, plan->arg_count);
    char **env = take(&text, plan->env_count);
    long r = protect(directories[0], directories[1]);
    if (r < 0)
        fail(ENTER_SETUP, r);
    tell(ENTER_READY, 0);
    char go = 0;
    do
        r = call3(__NR_read, CONTROL, (long)&go, 1);
    while (r == -EINTR);
    if (r != 1)
        end(127);
    long pid = call_fork();
    if (pid < 0)
        fail(ENTER_SETUP, pid);
    if (pid == 0)
        begin(plan, directories[2], argv, env);
    close_between(CONTROL + 1, PROGRAM);
    drop_bounds(0);
    set_rights(0);
    wait_for(pid);
}

START_WITH(enter)
