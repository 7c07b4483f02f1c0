"""Who keeps what: layers that something needs, layers that were released, and what each release must delete."""

import pytest
from plain import PlainLayer, nearest

from layerstore import LayerDoesNotExistError, StoreInUseError


class Keeping:
    """Of a World: references, releases and removals, and the lists that they must return."""

    def needed(self, layer: PlainLayer) -> bool:
        if layer.handles or any(one.parent is layer for one in self.layers.values()):
            return True
        if any(nearest(box) is layer for box in self.boxes.values()):
            return True
        return any(nearest(one) is layer or one.layer is layer for one in self.frozen)

    def gone_with(self, layer: PlainLayer | None) -> list[str]:
        """What goes when something that needed this layer went: it, if it was released, and so on downwards."""
        gone = []
        while layer and layer.chain in self.layers and layer.marked and not self.needed(layer):
            del self.layers[layer.chain]
            gone.append(layer.chain)
            layer = layer.parent
        return gone

    def referenced(self, layer: PlainLayer, handle, which: int) -> None:
        layer.handles.append((which, handle))
        layer.marked = False

    def release_snapshot(self) -> None:
        if frozen := self.some(self.frozen):
            self.tell(f"release of {frozen.id}")
            layer = frozen.layer or nearest(frozen)
            snap = self.store().get_snapshot(frozen.id)
            self.frozen.remove(frozen)
            frozen.recorded = False
            wanted = self.gone_with(layer)
            gone = [str(one.chain_id) for one in snap.release()]
            assert gone == wanted, f"released {frozen.id}: {gone}, not {wanted}"
            assert snap.release() == []
            with pytest.raises(LayerDoesNotExistError):
                self.store().get_snapshot(frozen.id)
            with pytest.raises(LayerDoesNotExistError):
                snap.fork("never")

    def release_box(self) -> None:
        box = self.some(box for box in self.boxes.values())
        if not box:
            return
        while box.mounts:
            box.handles[box.mounted_by].unmount()
            box.mounts -= 1
        self.tell(f"release of {box.name}")
        del self.boxes[box.name]
        wanted = self.gone_with(nearest(box))
        gone: list[str] = []
        for handle in box.handles.values():
            assert gone == []
            gone = [str(one.chain_id) for one in handle.release()]
        assert gone == wanted, f"released {box.name}: {gone}, not {wanted}"

    def release_layer(self) -> None:
        if layer := self.some(one for one in self.layers.values() if one.handles):
            _, handle = layer.handles.pop(self.draw.randrange(len(layer.handles)))
            self.tell(f"release of {layer.chain}")
            if not layer.handles:
                layer.marked = True
            wanted = self.gone_with(layer) if not layer.handles else []
            gone = [str(one.chain_id) for one in handle.release()]
            assert gone == wanted, f"released {layer.chain}: {gone}, not {wanted}"

    def remove_layer(self) -> None:
        if layer := self.some(self.layers.values()):
            self.tell(f"remove {layer.chain}")
            if self.needed(layer):
                with pytest.raises(StoreInUseError):
                    self.store().remove(layer.chain)
                return
            layer.marked = True
            wanted = self.gone_with(layer)
            assert [str(one.chain_id) for one in self.store().remove(layer.chain)] == wanted
