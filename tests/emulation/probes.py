"""Kernels of the tests' own, compiled beside a copy of the shipped headers."""

import shutil
from pathlib import Path

NAMES = ("uniforms", "halves", "votes", "deadlock", "race")


def copy_kernels(kernels: Path, folder: Path) -> Path:
    """Copies the shipped sources, to be changed; returns the copy."""
    copy = folder / "ops"
    for path in kernels.glob("*/*.cu*"):
        target = copy / path.relative_to(kernels)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # not its mode: a checkout may be read-only
    return copy


def probe_source(kernels: Path, folder: Path) -> Path:
    """Puts the probes beside a copy of the sources; returns their path."""
    target = copy_kernels(kernels, folder) / "unmask" / "probe.cu"
    return Path(shutil.copyfile(Path(__file__).with_name("probe.cu"), target))
