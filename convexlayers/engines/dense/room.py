"""Memory of the matrices that every iteration writes anew: fresh pages cost as much as the arithmetic on them."""

import math

from torch import Tensor


class Room:
    """Buffers by name. What is taken is overwritten by whoever takes the same name next."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A contiguous tensor with anything in it, of the dtype and on the device of `like`."""
        size, held = math.prod(shape), self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype or held.device != like.device:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)
