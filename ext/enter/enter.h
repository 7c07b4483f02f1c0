/* enter.h - what the caller and the first process of a sandbox agree on: descriptors, the plan, messages. */
#ifndef ENTER_H
#define ENTER_H

#include <stdint.h>

/* The descriptors it is started with, beside 0 to 2, which are bubblewrap's own. Those behind PROGRAM hold locks: it keeps
 * them until it ends, and the command does not get them. */
enum { CONTROL = 3, PLAN = 4, INPUT = 5, OUTPUT = 6, ERRORS = 7, PROGRAM = 8 };

/* PLAN is a file: this, then strings that end with NUL: where proc and the devices are, the working directory,
 * arg_count of the command, env_count of its environment. */
struct enter_plan {
    uint64_t rights;      /* capabilities that root keeps, a bit each; another user keeps none */
    uint32_t uid, gid;
    uint32_t flags;
    uint32_t arg_count, env_count;
    uint32_t unused;
};
enum { ENTER_NO_INPUT = 1, ENTER_KEEP_GROUPS = 2 };

/* Messages on CONTROL, a SOCK_SEQPACKET socket. A value of all but READY and ENDED is an errno. */
struct enter_message { int32_t what, value; };
enum {
    ENTER_READY = 1,      /* it waits for one byte */
    ENTER_ENDED,          /* the command has: wait(2)'s status */
    ENTER_SETUP,          /* these four: the command was not started, as this failed */
    ENTER_USER,
    ENTER_DIRECTORY,
    ENTER_EXEC,
};

#endif
