/* erofs_order.h - the names of a tree, those of one directory together and sorted. */
#ifndef LAY_EROFS_ORDER_H
#define LAY_EROFS_ORDER_H

#include "erofs/erofs_state.h"

/* The tree is no longer looked up. */
lay_code lay_eorder_set(lay_etree *t, lay_error *err);

#endif
