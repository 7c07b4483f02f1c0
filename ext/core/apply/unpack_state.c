/* unpack_state.c - what every part of the unpacker asks of its state: is a name known, is the pool done */
#include "apply/unpack_state.h"

#include "base/grow.h"

lay_code lay_unpack_drain(lay_unpack *u, lay_error *err)
{
    return u->pool ? lay_pool_drain(u->pool, err) : LAY_OK;
}

lay_code lay_unpack_seen(lay_unpack *u, const char *path, size_t n, bool *seen, lay_error *err)
{
    return lay_nameset_add(&u->seen, lay_nameset_hash(&u->seen, path, n), seen, err);
}

bool lay_unpack_is(const lay_unpack *u, const char *path, size_t n, uint64_t what)
{
    return lay_nameset_has(&u->seen, lay_nameset_hash(&u->seen, path, n) ^ what);
}

lay_code lay_unpack_note(lay_unpack *u, const char *path, size_t n, uint64_t what, lay_error *err)
{
    bool ignored;
    return lay_nameset_add(&u->seen, lay_nameset_hash(&u->seen, path, n) ^ what, &ignored, err);
}

lay_code lay_unpack_add_times(lay_unpack *u, const char *path, size_t n, const struct timespec times[2], lay_error *err)
{
    if (lay_grow(&u->times, &u->times_cap, u->ntimes, sizeof *u->times, err))
        return err->code;
    uint32_t id;
    if (lay_paths_add(&u->paths, path, n, &id, err))
        return err->code;
    u->times[u->ntimes++] = (dir_times){ id, { times[0], times[1] } };
    return LAY_OK;
}
