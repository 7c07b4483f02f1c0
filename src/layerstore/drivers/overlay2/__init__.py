"""overlay2: one directory a layer, mounted as an overlay."""
