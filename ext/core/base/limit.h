/* limit.h - what a tar may ask for, and the one way to say that it asked for more. */
#ifndef LAY_LIMIT_H
#define LAY_LIMIT_H

#include "base/error.h"

/* n is more than limit; a limit of 0 is none. */
static inline bool lay_is_over(int64_t n, int64_t limit) { return limit > 0 && n > limit; }

/* LAY_E_LIMIT with "<what>: more than <limit> <unit> (<option>)"; an option is named as the store has it. */
lay_code lay_fail_limit(lay_error *err, int64_t offset, const char *option, int64_t limit, const char *unit, const char *what);

/* Of a tar that is read out of the record of a layer, which was accepted by whatever limits then: only what keeps a made-up
 * record from taking all memory. */
const lay_limits *lay_limits_of_record(void);

#endif
