/* calls.h - system calls without a C library, and where such a program starts; elsewhere than on x86-64 and AArch64 by a static one. */
#ifndef CALLS_H
#define CALLS_H

#include <asm/unistd.h>
#include <stdbool.h>

#if defined(__x86_64__) && !defined(ENTER_LIBC)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

#define START_WITH(function) __asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  and $-16, %rsp\n  call " #function "\n");

#elif defined(__aarch64__) && !defined(ENTER_LIBC)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

#define START_WITH(function) __asm__(".globl _start\n_start:\n  mov x29, xzr\n  mov x30, xzr\n  bl " #function "\n");

#else

#include <errno.h>
#include <unistd.h>

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result = syscall(number, a, b, c, d, e, f);
    return result < 0 ? -errno : result;
}

#define START_WITH(function) int main(void) { function(); }

#endif

#if defined(ENTER_LIBC) || !(defined(__x86_64__) || defined(__aarch64__))
static inline long call_fork(void) { pid_t pid = fork(); return pid < 0 ? -errno : pid; }
#else
#define call_fork() call5(__NR_clone, SIGCHLD, 0, 0, 0, 0)
#endif

#define call5(n, a, b, c, d, e) call6(n, a, b, c, d, e, 0)
#define call4(n, a, b, c, d) call6(n, a, b, c, d, 0, 0)
#define call3(n, a, b, c) call6(n, a, b, c, 0, 0, 0)
#define call2(n, a, b) call6(n, a, b, 0, 0, 0, 0)
#define call1(n, a) call6(n, a, 0, 0, 0, 0, 0)
#define call0(n) call6(n, 0, 0, 0, 0, 0, 0)

/* Of kernels that are newer than some headers. */
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif

#endif
