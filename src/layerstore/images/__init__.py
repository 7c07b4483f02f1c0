"""Images of a store: loaded from archives of every kind, saved, listed, named, removed, unpacked."""

from layerstore.errors import ImageDoesNotExistError, ImageError
from layerstore.images.image import ArchivedImage, Image, Removed
from layerstore.images.images import Images

__all__ = ["ArchivedImage", "Image", "ImageDoesNotExistError", "ImageError", "Images", "Removed"]
