/* stand.h - what an unpacked tar leaves open, as bytes: a head, then directories, each behind the one that it lies in. */
#ifndef LAY_STAND_H
#define LAY_STAND_H

#include <stdint.h>

typedef struct lay_stand_head { uint32_t opaque; } lay_stand_head;      /* 1: the root is marked */
/* Its name follows. above: the number of its directory, counted from 1; 0: the root. implied: it has no entry. */
typedef struct lay_stand_node { uint32_t above, len, implied; } lay_stand_node;

#endif
