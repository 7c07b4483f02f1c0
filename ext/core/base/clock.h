/* clock.h - how long a call has worked already. */
#ifndef LAY_CLOCK_H
#define LAY_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t lay_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

#endif
