"""The history of an image: the steps in its config, each with the layer that it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from layerstore.images.image import Image


def history(image: Image, size_of: Callable[[str], int]) -> list[Mapping[str, Any]]:
    """Return the steps of an image, newest first: as in its config, each with "layer" and "size".

    size_of   bytes of one layer's own files
    A step without a layer has None and 0. Layers that the config tells nothing of come first, with nothing else.
    Source: moby, daemon/images/image_history.go
    """
    told = image.config.get("history")
    steps = [step for step in told if isinstance(step, dict)] if isinstance(told, list) else []
    layers = iter(image.layers)
    found: list[Mapping[str, Any]] = []
    for step in steps:
        layer = None if step.get("empty_layer") else next(layers, None)
        found.append({**step, "layer": layer, "size": size_of(layer) if layer else 0})
    found += [{"layer": layer, "size": size_of(layer)} for layer in layers]
    return found[::-1]
