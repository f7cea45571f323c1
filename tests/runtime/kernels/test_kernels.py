"""The kernel sources as compilers for the two targets see them, and as the host lays them out."""

import re
import shutil
import subprocess

import pytest
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.compile import compile_kernels
from dlm_edge.runtime.ops.cuda_ops import KERNELS
from dlm_edge.runtime.ops.cuda_state import POINTERS, RULE_CODES, SCORE_CODES, STATE

ARCHITECTURES = ((8, 7), (9, 0))
SOURCES = sorted(path.stem for path in KERNELS.glob("*.cu"))
ENUM_OF_RULE = {
    "low_confidence": "HIGHEST",
    "entropy": "HIGHEST",
    "margin": "HIGHEST",
    "next_token": "HIGHEST",
    "draft_verify": "HIGHEST",
    "tweedie": "TRANSITION",
    "euler": "TRANSITION",
}


@pytest.mark.parametrize("capability", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_nvcc_compiles_every_kernel_without_a_spill(name, capability, tmp_path, record_property):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here to compile the kernels with")
    target = f"sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        ["nvcc", f"-arch={target}", "-cubin", "-Xptxas", "-v", "-Werror",
         "all-warnings", "-o", tmp_path / "image.cubin", KERNELS / f"{name}.cu"],
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
        image = compile_kernels(KERNELS / f"{name}.cu", (8, 7))
    except DeviceError as error:
        if "cannot compile" in str(error):
            raise
        pytest.skip(f"no NVRTC here: {error}")
    assert image[:4] == b"\x7fELF"
    assert compile_kernels(KERNELS / f"{name}.cu", (8, 7)) == image


def members(text):
    body = re.search(r"struct Canvas \{(.*?)\n\};", text, re.DOTALL)
    assert body is not None
    lines = [line.split("//")[0].strip() for line in body[1].strip().split("\n")]
    return [re.fullmatch(r"(.*?)(\w+);", line).groups() for line in lines]  # pyright: ignore


def test_the_host_writes_the_state_as_the_kernels_read_it():
    kinds = {"double": "float64", "int": "int32", "unsigned": "uint32", "float": "float32"}
    found = members((KERNELS / "canvas.cuh").read_text("utf-8"))
    assert [name for _, name in found] == list(STATE.names or ())
    for kind, name in found:
        if name in POINTERS:
            assert kind.strip().endswith("*")
        else:
            assert STATE[name].name == kinds[kind.strip()], name
    assert STATE.itemsize == 23 * 8 + 30 * 4


def test_rules_and_scores_have_one_number_on_both_sides():
    text = (KERNELS / "canvas.cuh").read_text("utf-8")
    for prefix, codes in (("RULE_", RULE_CODES), ("SCORE_", SCORE_CODES)):
        numbers = dict(re.findall(rf"{prefix}(\w+) = (\d+)", text))
        for name, code in codes.items():
            assert int(numbers[ENUM_OF_RULE.get(name, name.upper()) if prefix == "RULE_"
                               else name.upper()]) == code  # fmt: skip
