"""What a public model will need and do on a board, from its sizes alone: before it is downloaded.

The same rates as `roofline.py` over counts in closed form: matrices are read once a run, products
are padded to tiles of rows, and every layer takes so many kernels. An export forecasts the same
from the graph itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.errors import ConfigError
from ...runtime.models.shelf import PublicModel, Shape
from ..targets import PowerMode, Target
from .machines import CPU_RUNTIME_MIB, CUDA_CONTEXT_MIB, GPU_RUNTIME_MIB, MIB
from .memory import MemoryForecast
from .roofline import BANDWIDTH_SHARE, KERNEL_CLOCKS, PRODUCT_SHARE, RATE_OF, ROW_TILE

WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5 + 2.0 / 32}
"""Of a weight of a layer; int4 has a float16 scale for 32."""
TABLE_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 1.0}
"""Of a weight of embedding and head."""
KERNELS_OF_LAYER = 20
"""As TensorRT's graphs of Qwen2's layers have them, counted by an export's forecast."""
ROW_BYTES = 6
"""Of a logit: in the graph's type, and in float32 for sampling."""
TIGHT = 0.85
"""Share of the free memory above which a model is tight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeForecast:
    """A model on a target."""

    precision: str
    mode: str | None
    memory: MemoryForecast
    run_ms: float | None
    """A run over the block, or the canvas, at a full context; None on a CPU."""
    tokens_per_s: float | None
    """At the published tokens per run; None where none was found."""

    @property
    def verdict(self) -> str:
        """fits, tight, does not fit; or unknown."""
        if self.memory.available is None:
            return "unknown"
        share = self.memory.total / self.memory.available
        return "does not fit" if share > 1 else "tight" if share > TIGHT else "fits"


def forecast_shape(
    model: PublicModel, place: Target, precision: str, mode: PowerMode | None
) -> ShapeForecast:
    """Forecasts a model on a target.

    Args:
        mode: Of a board; None on a CPU.

    Raises:
        ConfigError: Unknown precision.
    """
    if precision not in WEIGHT_BYTES:
        raise ConfigError(f"precision {precision!r}: choose one of {', '.join(WEIGHT_BYTES)}")
    rows, context = _run(model)
    memory = _memory(model.shape, precision, place, rows, context, available_of(place))
    run_ms = None if mode is None else _run_ms(model.shape, precision, mode, rows, context)
    tokens = 1.0 if model.block is None else model.tokens_per_run
    rate = None if run_ms is None or tokens is None else 1e3 * tokens / run_ms
    return ShapeForecast(
        precision=precision,
        mode=None if mode is None else mode.name,
        memory=memory,
        run_ms=run_ms,
        tokens_per_s=rate,
    )


def available_of(place: Target) -> float | None:
    """MiB that a target has free."""
    from ...runtime.measure.machine import read_meminfo

    if place.is_gpu:
        return float(place.memory_mib - place.system_mib)
    return read_meminfo().get("MemAvailable")


def _run(model: PublicModel) -> tuple[int, int]:
    """Rows and context of a run."""
    if model.block == 0:
        return model.canvas, 0
    return model.rows or model.block or 1, model.canvas


def _memory(
    shape: Shape,
    precision: str,
    place: Target,
    rows: int,
    context: int,
    available: float | None,
) -> MemoryForecast:
    tables = shape.table_weights * (1 if shape.tied else 2)
    weights = shape.layer_weights * WEIGHT_BYTES[precision] + tables * TABLE_BYTES[precision]
    item = 2 if place.is_gpu else 4
    return MemoryForecast(
        weights=weights / MIB,
        kv=_kv_bytes(shape, context, item) / MIB,
        activations=rows * (shape.vocab * ROW_BYTES + 4 * shape.hidden * item) / MIB,
        context=CUDA_CONTEXT_MIB if place.is_gpu else 0.0,
        runtime=GPU_RUNTIME_MIB if place.is_gpu else CPU_RUNTIME_MIB,
        available=available,
    )


def _kv_bytes(shape: Shape, context: int, item: int) -> float:
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * context * item


def _run_ms(shape: Shape, precision: str, mode: PowerMode, rows: int, context: int) -> float:
    """One run: layers and head one after the other, each bound by memory or by products."""
    kind = "int8" if precision == "int8" else "float16"
    bandwidth = mode.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE
    padded = -(-rows // ROW_TILE) * ROW_TILE
    pairs = 2.0 * shape.layers * shape.heads * shape.head_dim * padded * (context + rows)

    def seconds(weights: float, moved: float, macs: float, dtype: str) -> float:
        rate = mode.fp16_tflops * 1e12 * RATE_OF[dtype] * PRODUCT_SHARE
        return max((weights + moved) / bandwidth, 2 * macs / rate)

    layers = seconds(
        shape.layer_weights * WEIGHT_BYTES[precision],
        0.0,
        float(shape.layer_weights) * padded,
        kind,
    )
    attention = seconds(0.0, _kv_bytes(shape, context, 2), pairs, "float16")
    head = seconds(
        shape.table_weights * TABLE_BYTES[precision],
        rows * shape.vocab * 4.0,
        float(shape.table_weights) * padded,
        "float16",
    )
    idle = (KERNELS_OF_LAYER * shape.layers + 10) * KERNEL_CLOCKS / (mode.gpu_mhz * 1e6)
    return 1e3 * (layers + attention + head + idle)
