"""erofs: one file a layer, its tar with an EROFS image behind it, mounted as it is."""
