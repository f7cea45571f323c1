"""SIGKILL at random moments of what writes: afterwards nothing is lost, and nothing is half there.

A case forks this process, which has everything imported, lets the child work, kills it, and looks
at what it left; then the same work must run to its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines.plan_cache import NewPlan, PlanCache, PlanKey
from dlm_edge.runtime.errors import DlmError
from dlm_edge.runtime.files import UNFINISHED

PLAN = bytes(range(256)) * 40_000
STORIES = "\n<|endoftext|>\n".join(f"The dog {i} saw a cat and ran home." for i in range(300))
RUN = (
    *("--dim", "32", "--layers", "1", "--heads", "1", "--context", "32", "--vocab-size", "300"),
    *("--batch-size", "2", "--eval-rows", "2", "--max-steps", "60", "--save-every", "5"),
    *("--block-size", "8,full", "--log", "none", "--eval-every", "20"),
)


@dataclass(frozen=True, slots=True)
class Writer:
    """A kind of work that can be killed."""

    work: Callable[[Path, Any], None]
    """Given a folder of its own and the sound inputs, in a child process."""
    check: Callable[[Path, Any], None]
    """Looks at what a killed child left."""
    check_end: Callable[[Path, Any], None]
    """Looks at what the work gave in the end."""


def _child(work: Callable[[], None], log: Path) -> int:
    """Forks; the child works and ends with 0, or with 1 and a traceback in the log."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _finished(work: Callable[[], None], log: Path) -> float:
    """Lets the work run to its end; returns its seconds."""
    begin = time.perf_counter()
    _, status = os.waitpid(_child(work, log), 0)
    assert status == 0, f"it fails with {status}: {log.read_text()[-2000:]}"
    return time.perf_counter() - begin


def _killed(work: Callable[[], None], log: Path, seconds: float) -> bool:
    """Kills the work after so many seconds; False if it was done before."""
    child = _child(work, log)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, f"it fails with {status}: {log.read_text()[-2000:]}"
    return os.WIFSIGNALED(status)


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _nothing_half(folder: Path, *names: str) -> None:
    """Only finished files have a name; the rest is hidden, and says what it is."""
    for path in folder.iterdir():
        hidden = path.name.startswith(".") and path.name.endswith(UNFINISHED)
        assert hidden or path.name in names, f"{path.name} is left"


def _unpack(folder: Path, inputs: Mapping[str, Any]) -> None:
    with _cache(folder):
        bundle = open_bundle(inputs["shipped"])
        assert bundle.member("tokenizer.json").is_file()


def _check_unpacked(folder: Path, inputs: Mapping[str, Any]) -> None:
    entries = folder / "cache" / "dlm-edge" / "bundles"
    for entry in entries.iterdir() if entries.is_dir() else ():
        assert entry.suffix in ("", ".lock", ".partial"), entry
        if not entry.suffix:
            assert {p.name for p in entry.iterdir()} == {p.name for p in inputs["entry"].iterdir()}


def _key() -> PlanKey:
    return PlanKey(
        bundle_sha256="ab" * 32,
        file="graphs/denoise.onnx",
        precision="fp16",
        backend_version="tensorrt 10.3.0",
        gpu_name="Orin",
        compute_capability="8.7",
        driver_version=12060,
        power_mode="0002",
        options={"workspace_mib": 512},
    )


def _build(folder: Path, inputs: Any) -> None:
    """A stand-in for TensorRT builds a plan of 10 MB."""

    def plan() -> NewPlan:
        time.sleep(0.01)
        return NewPlan(data=memoryview(PLAN), facts={"bundle": "x.dlm", "seconds": 0.01})

    with _cache(folder):
        assert PlanCache().obtain(_key(), plan) == PLAN


def _check_plan(folder: Path, inputs: Any) -> None:
    with _cache(folder):
        notes: list[str] = []
        found = PlanCache(notes.append).load(_key())
        assert found is None or found == PLAN
        assert not notes, notes


def _export(folder: Path, inputs: Mapping[str, Any]) -> None:
    from dlm_edge.export.pack import export_checkpoint
    from dlm_edge.export.settings import ExportSettings

    settings = ExportSettings(blocks=(4,), contexts=(8, 16))
    with _cache(folder):
        (folder / "out").mkdir(exist_ok=True)
        shutil.copy(inputs["old"], folder / "out" / "m.dlm")
        export_checkpoint(inputs["checkpoint"], folder / "out" / "m.dlm", settings)


def _check_export(folder: Path, inputs: Mapping[str, Any]) -> None:
    out = folder / "out"
    if not (out / "m.dlm").exists():  # killed before the copy was made
        return
    _nothing_half(out, "m.dlm")
    if (out / "m.dlm").stat().st_size < inputs["old"].stat().st_size:
        return  # while the copy was made
    with _cache(folder):
        open_bundle(out / "m.dlm")


def _canvases(seed: int) -> Any:
    import numpy as np
    from dlm_edge.calibration.canvases.canvases import CanvasSet, Inputs, RecordedRun
    from toy_bundle import CACHE, toy_manifest

    spec = toy_manifest().graphs[0]
    rng = np.random.default_rng(seed)
    runs = [
        RecordedRun(
            spec=spec,
            inputs=Inputs(
                {
                    "ids": rng.integers(2, 20, (1, spec.rows)).astype(np.int32),
                    "start": np.array([2], np.int32),
                    "kv": rng.standard_normal((2, *CACHE)).astype(np.float32),
                },
                {"kv": spec.context},
            ),
            mask_ratio=0.5,
            progress=0.25,
            weight=1.25,
            source="decode",
            committing=np.array([False, True, False, True]),
        )
        for _ in range(200)
    ]
    return CanvasSet(items=tuple(runs), model_sha256=str(seed), recipe={"seed": seed})


_OWNER = {"checkpoint": "ab", "seed": 0}


def _record(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Writes a file of canvases over an older one."""
    from dlm_edge.calibration.canvases.file import write_canvases

    path = folder / "c.canvases"
    write_canvases(path, {"decode": inputs["canvases"][0]}, _OWNER)
    write_canvases(path, {"decode": inputs["canvases"][1]}, _OWNER)


def _check_canvases(folder: Path, inputs: Mapping[str, Any]) -> None:
    from dlm_edge.calibration.canvases.file import read_canvases
    from toy_bundle import toy_manifest

    _nothing_half(folder, "c.canvases")
    if (folder / "c.canvases").exists():
        found = read_canvases(folder / "c.canvases", _OWNER, toy_manifest().graphs)
        assert len(found["decode"].items) == 200


def _train(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Starts a run, or goes on with one that was killed."""
    import torch
    from dlm_edge.train.cli import main

    torch.set_num_threads(1)
    out = folder / "run"
    more = ["--resume"] if (out / "train.json").exists() else ["--data", str(inputs["text"]), *RUN]
    with _cache(folder):
        main.main([*more, "--out", str(out)])


def _check_run(folder: Path, inputs: Mapping[str, Any]) -> None:
    from dlm_edge.train.checkpoints.convert import open_any

    for place in (folder / "run", folder / "run" / "last"):
        if (place / "config.json").exists():  # is written last
            open_any(place)


def _weights(run: Path) -> bytes:
    """The tensors' bytes; the library writes what stands before them in any order."""
    data = (run / "last" / "model.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def _check_trained(folder: Path, inputs: Mapping[str, Any]) -> None:
    whole = _weights(folder / "run") == inputs["trained"]
    assert whole, "the weights are not those of a run in one piece"


WRITERS: Mapping[str, Writer] = {
    "unpacking": Writer(_unpack, _check_unpacked, _check_unpacked),
    "plan": Writer(_build, _check_plan, _check_plan),
    "canvases": Writer(_record, _check_canvases, _check_canvases),
    "training": Writer(_train, _check_run, _check_trained),
    "export": Writer(_export, _check_export, _check_export),
}


def prepare(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Makes the inputs of some WRITERS, and measures how long each takes in one piece."""
    from dlm_edge.runtime.bundle.bundle import default_bundle_path
    from family_bundles import make_family_bundle

    inputs: dict[str, Any] = {"shipped": default_bundle_path(), "seconds": {}}
    folder = folder / "-".join(("kills", *names))
    shutil.rmtree(folder / "whole", ignore_errors=True)
    (folder / "whole").mkdir(parents=True)
    inputs["canvases"] = [_canvases(0), _canvases(1)]
    inputs["text"] = folder / "stories.txt"
    inputs["text"].write_text(STORIES, "utf-8")
    if "export" in names or "training" in names:
        import dlm_edge.export.pack
        import dlm_edge.train.cli
        import dlm_edge.train.loop.run  # noqa: F401
        import torch

        torch.set_num_threads(1)
    if "export" in names:
        inputs["old"] = folder.parent / "mdlm.dlm"
        if not inputs["old"].exists():
            make_family_bundle(folder.parent, "mdlm")
        inputs["checkpoint"] = folder.parent / "mdlm"
    with _cache(folder / "whole"):
        inputs["entry"] = open_bundle(inputs["shipped"]).folder
    inputs["names"] = names
    for name in names:
        place = folder / "whole" / name
        place.mkdir()

        def work(name: str = name, place: Path = place) -> None:
            WRITERS[name].work(place, inputs)

        inputs["seconds"][name] = _finished(work, folder / f"{name}.log")
    if "training" in names:
        inputs["trained"] = _weights(folder / "whole" / "training" / "run")
    return inputs


def _sound(check: Callable[[Path, Any], None], place: Path, inputs: Any) -> None:
    """Makes a fault of an error: what a killed program left has to be readable."""
    try:
        check(place, inputs)
    except DlmError as error:
        raise AssertionError(f"what is left cannot be read: {error}") from error


def try_kill(rng: Random, folder: Path, inputs: dict[str, Any]) -> str:
    """Kills one kind of work once or twice, and then lets it end."""
    name = rng.choice(inputs["names"])
    writer, place, log = WRITERS[name], folder / "work", folder / "log"
    place.mkdir()

    def work() -> None:
        writer.work(place, inputs)

    died = False
    for _ in range(rng.choice((1, 1, 2))):
        died |= _killed(work, log, rng.uniform(0, inputs["seconds"][name]))
        _sound(writer.check, place, inputs)
    _finished(work, log)
    _sound(writer.check_end, place, inputs)
    return f"{name} killed" if died else f"{name} done before"
