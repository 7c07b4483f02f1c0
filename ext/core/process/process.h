/* process.h - a program that makes a namespace, and the first process in it: both are gone when the handle is.
 *
 * The program (bubblewrap) is our child. Pid 1 of the namespace is not: it tells that it is ready on a socket (the
 * messages are those of ext/enter/enter.h), and from then on it is followed by a pidfd. It starts nothing before
 * lay_process_go(), so that a caller which dies leaves nothing behind.
 */
#ifndef LAY_PROCESS_H
#define LAY_PROCESS_H

#include "lay.h"

typedef struct lay_process lay_process;

/* In place of a descriptor for lay_process_start(). */
#define LAY_PROCESS_NONE (-1)
#define LAY_PROCESS_CONTROL (-2)

/* Start a program with an empty environment, in a session of its own, with no signal ignored or blocked.
 * fds   what its descriptors 0 ... n-1 are: a descriptor, NONE, or once CONTROL: the other end of the socket
 * LAY_E_OS: as posix_spawn(3), or no memory or descriptor is left. */
lay_code lay_process_start(lay_process **out, const char *program, const char *const *argv, const int *fds, size_t n, lay_error *err);

/* Readable when there is a message, or the namespace is gone. */
int lay_process_control(const lay_process *p);
/* Readable when the program has ended. */
int lay_process_ended(const lay_process *p);

#define LAY_PROCESS_GONE (-1)
/* The next message: *what is 0 if there is none yet, GONE if none will come. */
lay_code lay_process_next(lay_process *p, int *what, int *value, lay_error *err);
/* Let pid 1 start the command. */
void lay_process_go(lay_process *p);

/* Kill pid 1, and with it the whole namespace; wait until all are gone, and close the handle's descriptors. Twice is
 * harmless. In a forked child, and with NULL, it does nothing. */
void lay_process_end(lay_process *p);
void lay_process_free(lay_process *p);     /* ends it */

#endif
