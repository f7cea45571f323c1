"""The kernel sources as compilers for the two targets see them, and as the host lays them out."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.compile import OPS, compile_kernels
from dlm_edge.runtime.ops.drafts.contract import MAX_STOPS
from dlm_edge.runtime.ops.drafts.device import DRAFT_STATE
from dlm_edge.runtime.ops.transition.device import TRANSITION_STATE
from dlm_edge.runtime.ops.unmask.contract import Kind, Score
from dlm_edge.runtime.ops.unmask.device import UNMASK_STATE
from emulation.device import HEADER

ARCHITECTURES = ((8, 7), (9, 0))
SOURCES = sorted(str(path.relative_to(OPS)) for path in OPS.glob("*/*.cu"))


@pytest.mark.parametrize("capability", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_nvcc_compiles_every_kernel_without_a_spill(name, capability, tmp_path, record_property):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here to compile the kernels with")
    target = f"sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        ["nvcc", f"-arch={target}", "-cubin", "-Xptxas", "-v", "-Werror",
         "all-warnings", "-o", tmp_path / "image.cubin", OPS / name, f"-I{OPS}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "gpu architecture" in done.stderr or "gpu-architecture" in done.stderr:
        pytest.skip(f"this nvcc knows no {target}")
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers",
                           done.stderr, re.DOTALL)  # fmt: skip
    for kernel, count in registers:
        record_property(f"{kernel} registers {target}", count)
    assert spills
    assert registers
    assert all(pair == ("0", "0") for pair in spills), done.stderr


@pytest.mark.parametrize("name", SOURCES)
def test_nvrtc_compiles_every_kernel_once_and_finds_it_again(name):
    try:
        image = compile_kernels(OPS / name, (8, 7))
    except DeviceError as error:
        if "cannot compile" in str(error):
            raise
        pytest.skip(f"no NVRTC here: {error}")
    assert image[:4] == b"\x7fELF"
    assert compile_kernels(OPS / name, (8, 7)) == image


def test_the_host_reads_the_layout_of_a_state_from_its_header():
    assert UNMASK_STATE["ids"] == np.uint64
    assert UNMASK_STATE["limit"] == np.float64
    assert UNMASK_STATE["seed_low"] == np.uint32
    assert UNMASK_STATE["inverse_temperature"] == np.float32
    assert UNMASK_STATE["num_kept"] == np.int32
    assert DRAFT_STATE["stops"].shape == (MAX_STOPS,)
    assert DRAFT_STATE["weights"] == np.uint64


def test_a_layout_is_that_of_a_compiler(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to compile the structures with")
    structures = {
        "Unmask": ("unmask/unmask.cuh", UNMASK_STATE),
        "Transition": ("transition/transition.cuh", TRANSITION_STATE),
        "Drafts": ("drafts/drafts.cuh", DRAFT_STATE),
    }
    for name, (header, layout) in structures.items():
        checks = [f"static_assert(sizeof({name}) == {layout.itemsize});"]
        for member, (_, offset) in (layout.fields or {}).items():
            checks.append(f"static_assert(__builtin_offsetof({name}, {member}) == {offset});")
        source = tmp_path / f"{name}.cpp"
        source.write_text(f'#include "{header}"\n' + "\n".join(checks), "utf-8")
        done = subprocess.run(
            ["g++", "-std=c++17", "-fsyntax-only", f"-I{OPS}", "-include", HEADER, source],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("header", "prefix", "codes"),
    [("unmask/unmask.cuh", "KIND_", Kind), ("rows/row.cuh", "SCORE_", Score)],
)
def test_kinds_and_scores_have_one_number_on_both_sides(header, prefix, codes):
    text = (OPS / header).read_text("utf-8")
    found = {name: int(code) for name, code in re.findall(rf"{prefix}(\w+) = (\d+)", text)}
    assert found == {code.name: code.value for code in codes}
