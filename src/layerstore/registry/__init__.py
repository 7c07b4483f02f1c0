"""The client of registries: it knows HTTP, and no stores or images. Importing it loads neither urllib3 nor ssl."""
