"""dlm-edge: take a diffusion language model from a desktop to a Jetson Orin Nano.

`from dlm_edge import Pipeline` opens a bundle and writes text with it, without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the commands import this package first, and numpy takes 0.1 s.
    if name == "Pipeline":
        from .runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
