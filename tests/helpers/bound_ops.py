"""NumPy ops whose form of one primitive is a test's own."""

from typing import Any

from dlm_edge.runtime.ops.core import Primitive
from dlm_edge.runtime.ops.host import NumpyOps


class OpsWith(NumpyOps):
    """`NumpyOps` that binds `form` for the primitive."""

    def __init__(self, primitive: Primitive[Any], form: Any) -> None:
        super().__init__()
        self._bound[primitive.name] = form
