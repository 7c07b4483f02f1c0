/* proof.h - does a stored tar, read from its first byte to its end, still hash to its DiffID? */
#ifndef LAY_PROOF_H
#define LAY_PROOF_H

#include "base/digest.h"

typedef struct lay_proof {
    bool wanted, under_way;
    uint8_t diff_id[LAY_SHA256_SIZE];
    lay_sha256 sha;
} lay_proof;

void lay_proof_init(lay_proof *p, const uint8_t *diff_id);     /* 32 bytes, and it starts; NULL: nothing is asked */
void lay_proof_start(lay_proof *p);                            /* the first byte comes next */
static inline void lay_proof_give_up(lay_proof *p) { p->under_way = false; }    /* bytes are left out */
void lay_proof_add(lay_proof *p, const void *bytes, size_t n);
/* All is given: LAY_OK, or LAY_E_MISMATCH in moby's words. Asked once. */
lay_code lay_proof_end(lay_proof *p, lay_error *err);
/* That error, known without a hash. */
lay_code lay_proof_fail(const lay_proof *p, lay_error *err);

#endif
