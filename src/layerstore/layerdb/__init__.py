"""The layerdb and the imagedb: what the root records of layers, writable layers and images."""
