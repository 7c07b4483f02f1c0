"""layerstore: the layer store of Docker/moby as a Python package with a C core."""

import importlib
from typing import TYPE_CHECKING

from layerstore import _core as _core
from layerstore import logs
from layerstore._core._apply import build_info
from layerstore.contents.compare import changes_between, overlay_changes
from layerstore.contents.merged import MergedTree
from layerstore.errors import (
    ActiveMountError,
    AuthenticationError,
    BreakoutError,
    CorruptLayerError,
    Holder,
    ImageDoesNotExistError,
    ImageError,
    InvalidDigestError,
    InvalidMetadataError,
    InvalidOptionError,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
    LimitExceededError,
    MaxDepthExceededError,
    MountDoesNotExistError,
    MountNameConflictError,
    NotInRegistryError,
    NotMountedError,
    NotSupportedError,
    ReadOnlyStoreError,
    RegistryError,
    StoreClosedError,
    StoreInUseError,
    TarFormatError,
)
from layerstore.ids import EMPTY_LAYER_DIFF_ID, OS, ChainID, DiffID, Digest, create_chain_id
from layerstore.images import ArchivedImage, Image, Images, Removed
from layerstore.layer import EMPTY_LAYER, Layer
from layerstore.layerdb.store import FileMetadataStore, MetadataStore
from layerstore.layerdb.transaction import MetadataTransaction
from layerstore.registry.registry import Registry
from layerstore.rwlayer import RWLayer, Snapshot
from layerstore.store import Store, log_release_metadata, release_and_log
from layerstore.streams.directory import pack_directory
from layerstore.streams.leftout import LeftOutWarning
from layerstore.streams.tarstream import TarStream, assemble, disassemble
from layerstore.values import (
    Change,
    ChangeKind,
    CreateRWLayerOpts,
    Descriptor,
    Done,
    FileEntry,
    FileType,
    Metadata,
    Orphan,
    Problem,
    Usage,
)
from layerstore.version import VERSION

__version__ = VERSION

logs.prepare()

__all__ = [
    "EMPTY_LAYER", "EMPTY_LAYER_DIFF_ID", "OS", "ActiveMountError", "ArchivedImage", "AuthenticationError",
    "BreakoutError", "ChainID", "Change", "ChangeKind", "CorruptLayerError", "CreateRWLayerOpts", "Descriptor",
    "DiffID", "Digest", "Done", "FileEntry", "FileMetadataStore", "FileType", "Holder", "Image",
    "ImageDoesNotExistError", "ImageError", "Images", "InvalidDigestError", "InvalidMetadataError",
    "InvalidOptionError", "Layer", "LayerDoesNotExistError", "LayerNotRetainedError", "LayerStoreError",
    "LeftOutWarning", "LimitExceededError", "MaxDepthExceededError", "MergedTree", "Metadata", "MetadataStore",
    "MetadataTransaction", "MountDoesNotExistError", "MountNameConflictError", "NotInRegistryError",
    "NotMountedError", "NotSupportedError", "Orphan", "Problem", "RWLayer", "ReadOnlyStoreError", "Registry",
    "RegistryError", "Removed", "Snapshot", "Store", "StoreClosedError", "StoreInUseError", "TarFormatError",
    "TarStream", "Usage", "assemble", "build_info", "changes_between", "create_chain_id", "disassemble",
    "log_release_metadata", "overlay_changes", "pack_directory", "release_and_log",
]  # fmt: skip

if not TYPE_CHECKING:                     # else a type checker takes every name for a public one

    def __getattr__(name: str) -> object:
        """Import layerstore.aio when it is first used: it brings asyncio."""
        if name == "aio":
            return importlib.import_module("layerstore.aio")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names only."""
    return sorted([*__all__, "__version__", "aio", "errors"])
