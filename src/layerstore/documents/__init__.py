"""The JSON documents and the names of images: manifests, indexes, configs, platforms, references."""
