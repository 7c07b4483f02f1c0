/* proof.c - does a stored tar, read from its first byte to its end, still hash to its DiffID?
 * Source: moby, layer.go (verifiedReadCloser).
 */
#include "source/proof.h"

#include <string.h>

void lay_proof_init(lay_proof *p, const uint8_t *diff_id)
{
    p->wanted = diff_id != NULL;
    if (diff_id)
        memcpy(p->diff_id, diff_id, sizeof p->diff_id);
    lay_proof_start(p);
}

void lay_proof_start(lay_proof *p)
{
    p->under_way = p->wanted;
    if (p->under_way)
        lay_sha256_start(&p->sha);
}

void lay_proof_add(lay_proof *p, const void *bytes, size_t n)
{
    if (p->under_way)
        lay_sha256_add(&p->sha, bytes, n);
}

lay_code lay_proof_end(lay_proof *p, lay_error *err)
{
    uint8_t got[LAY_SHA256_SIZE];
    if (!p->under_way)
        return LAY_OK;
    p->under_way = false;
    lay_sha256_end(&p->sha, got);
    return memcmp(got, p->diff_id, sizeof got) ? lay_proof_fail(p, err) : LAY_OK;
}

lay_code lay_proof_fail(const lay_proof *p, lay_error *err)
{
    char hex[2 * LAY_SHA256_SIZE + 1];
    for (size_t i = 0; i < LAY_SHA256_SIZE; i++) {
        static const char digits[] = "0123456789abcdef";
        hex[2 * i] = digits[p->diff_id[i] >> 4];
        hex[2 * i + 1] = digits[p->diff_id[i] & 15];
    }
    hex[2 * LAY_SHA256_SIZE] = '\0';
    return lay_fail(err, LAY_E_MISMATCH, "could not verify layer data for: sha256:%s. This may be because internal files in the layer "
                    "store were modified. Re-pulling or rebuilding this image may resolve the issue", hex);
}
