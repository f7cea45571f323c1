"""After an export: the TensorRT plans too, where TensorRT and the target's GPU are at hand.

By the same function as `dlm-run --build`; a plan never travels, so elsewhere it is only said what
builds it there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jetson.targets import target as find_target
from ..runtime.bundle.bundle import open_bundle
from ..runtime.engines.plan_cache import PlanCache
from ..runtime.engines.tensorrt_build import BuildSettings
from ..runtime.engines.tensorrt_open import at_hand
from ..runtime.engines.tensorrt_plans import build_plans
from ..runtime.errors import DlmError


def build_if_at_hand(
    output: Path,
    target: str,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> dict[str, Any]:
    """Builds the plans of a bundle just written, if this machine is its target.

    Returns:
        `plans` (one object per plan; empty if none was built) and `why` (in words, why none was).
    """
    place = find_target(target)
    if not place.is_gpu and target != "host":  # host: whatever GPU is here
        return {"plans": [], "why": f"target {target} runs without TensorRT"}
    try:
        trt, gpu = at_hand()
        wanted = place.compute_capability or gpu.compute_capability
        if gpu.compute_capability != wanted:
            return {
                "plans": [],
                "why": f"{target} has compute capability {wanted}, {gpu.name} here "
                f"{gpu.compute_capability}",
            }
        notes: list[str] = []
        plans = build_plans(
            trt, open_bundle(output), gpu, PlanCache(notes.append), BuildSettings(), report=report
        )
        built = [
            {"file": plan.key.file, "bytes": plan.data.nbytes, "facts": dict(plan.facts or {})}
            for plan in plans
        ]
    except DlmError as error:  # the bundle is written; its plans can be built where it will run
        return {"plans": [], "why": str(error)}
    return {"plans": built, "why": ""}
