"""The plans of a bundle: from the cache, or built with what TensorRT is here.

Joins the bundle's graphs, the builder and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.manifest import GraphSpec, Manifest
from ..errors import EngineError
from ..gpu.facts import GpuFacts
from .base import CPU_TARGETS
from .plan_cache import NewPlan, PlanCache, PlanKey
from .tensorrt_build import BuildSettings, build_plan

KERNELS_MIB = 64
"""What a plan may hold beside weights before that is worth a word."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One plan, ready to be deserialised."""

    key: PlanKey
    specs: tuple[GraphSpec, ...]
    """Profile i is the shape of specs[i]."""
    data: memoryview
    facts: Mapping[str, Any] | None
    """seconds, peak_rss_mib, weights_mib (of the bundle), warnings if it was built just now; None:
    it was in the cache."""

    @property
    def surplus(self) -> str | None:
        """What to say of a new plan that holds much more than the weights."""
        if self.facts is None:
            return None
        own, weights = self.data.nbytes / _MIB, self.facts["weights_mib"]
        if own < 1.5 * weights + KERNELS_MIB:
            return None
        return (
            f"the plan takes {own:.0f} MiB for {weights:.0f} MiB of weights: TensorRT lays them "
            "out anew for some shapes, though asked not to; where memory is short, export with "
            "fewer sizes (--block, --context)"
        )


def graph_files(bundle: Bundle) -> dict[str, tuple[GraphSpec, ...]]:
    """Returns the shapes of each ONNX file of a bundle, those of most work first.

    The order is that of the profiles, of which the first decides how weights lie in memory.
    """
    files: dict[str, tuple[GraphSpec, ...]] = {}
    for spec in sorted(bundle.manifest.graphs, key=lambda spec: (-spec.rows, -spec.context)):
        files[spec.file] = (*files.get(spec.file, ()), spec)
    return files


def made_for_cpus(manifest: Manifest) -> str | None:
    """Says why TensorRT cannot run a bundle's graphs, and what to do; None: it can."""
    if manifest.precision not in ("int8", "int4") or manifest.target not in CPU_TARGETS:
        return None
    return (
        f"the bundle's {manifest.precision} graphs are made for --target {manifest.target}, with "
        "integer operators that TensorRT has not: export it with --target orin-nano (or your board)"
    )


def plan_key(
    trt: Any, bundle: Bundle, file: str, precision: str, gpu: GpuFacts, settings: BuildSettings
) -> PlanKey:
    """Returns what the plan of one ONNX file depends on."""
    return PlanKey(
        bundle_sha256=bundle.sha256,
        file=file,
        precision=precision,
        backend_version=f"{trt.__name__} {trt.__version__}",
        gpu_name=gpu.name,
        compute_capability=gpu.compute_capability,
        driver_version=gpu.driver_version,
        power_mode=gpu.power_mode,
        options=asdict(settings),
    )


def plan_for(
    trt: Any,
    bundle: Bundle,
    file: str,
    gpu: GpuFacts,
    cache: PlanCache,
    settings: BuildSettings,
    *,
    rebuild: bool = False,
    configure: Callable[[Any], None] = lambda config: None,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> Plan:
    """Returns the plan of one ONNX file of a bundle.

    Raises:
        EngineError: It cannot be built, or the cache cannot be written.
    """
    reason = made_for_cpus(bundle.manifest)
    if reason is not None:
        raise EngineError(reason)
    specs = graph_files(bundle)[file]
    key = plan_key(trt, bundle, file, specs[0].precision, gpu, settings)
    built: list[Mapping[str, Any]] = []

    def build() -> NewPlan:
        plan = build_plan(
            trt,
            bundle.member(file),
            specs,
            settings,
            timing_cache=cache.timings(key),
            configure=configure,
            report=report,
        )
        cache.keep_timings(key, plan.timing_cache)
        facts = {
            "bundle": bundle.path.name[:200],
            "profiles": [spec.label for spec in specs[:32]],
            "weights_mib": round(bundle.weights_bytes / _MIB, 2),
            "seconds": round(plan.seconds, 2),
            "peak_rss_mib": round(plan.peak_rss_mib),
        }
        built.append({**facts, "warnings": list(plan.warnings)})
        return NewPlan(data=plan.data, facts=facts)

    data = cache.obtain(key, build, rebuild=rebuild, need_bytes=bundle.weights_bytes)
    return Plan(key=key, specs=specs, data=data, facts=built[0] if built else None)


def build_plans(
    trt: Any,
    bundle: Bundle,
    gpu: GpuFacts,
    cache: PlanCache,
    settings: BuildSettings,
    *,
    rebuild: bool = False,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> Iterator[Plan]:
    """Yields the plan of every ONNX file of a bundle, built where the cache has none.

    What `dlm-run --build` and `dlm-export` call; arguments and errors are `plan_for`'s.
    """
    for file in graph_files(bundle):
        yield plan_for(trt, bundle, file, gpu, cache, settings, rebuild=rebuild, report=report)
