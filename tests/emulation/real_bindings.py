"""A program: the whole device loop through the real pycuda or cuda-bindings, on `libcuda.cpp`.

Run by tests/runtime/gpu/test_real_bindings.py with that library in the driver's place. Takes the
checkout's root, which binding, and a bundle; prints one JSON object. `CUDA_STAND_IN_END` says how
it ends: closed, or by leaving everything open.
"""

import ctypes
import gc
import importlib.util
import json
import os
import sys
from pathlib import Path


def load(root):
    """Makes the checkout importable as dlm_edge, its tests beside it."""
    spec = importlib.util.spec_from_file_location(
        "dlm_edge", f"{root}/__init__.py", submodule_search_locations=[root]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["dlm_edge"] = package
    spec.loader.exec_module(package)
    sys.path.insert(0, str(Path(root) / "tests"))


class RealDevice:
    """What the stand-in for TensorRT's runtime asks of a device, through the driver itself."""

    def __init__(self, device, driver):
        self.stream, self.counts = device.stream, {}
        self._driver, self._kept = driver, []

    def view(self, array):
        import numpy as np

        kind = ctypes.c_char * array.nbytes
        return np.frombuffer(kind.from_address(array.pointer), array.dtype).reshape(array.shape)

    def enqueue(self, run):
        call = ctypes.CFUNCTYPE(None)(run)
        self._kept.append(call)  # a captured step calls it again
        self._driver.enqueue_host_call(call)


def main(root, binding, bundle):
    load(root)
    if binding == "cuda-bindings":
        sys.modules["pycuda"] = None
    import pytest
    from dlm_edge.runtime.engines import tensorrt_open
    from dlm_edge.runtime.errors import DeviceError
    from dlm_edge.runtime.gpu import cuda
    from dlm_edge.runtime.gpu.cuda import CudaDevice
    from dlm_edge.runtime.ops.primitives import check_kernels
    from dlm_edge.runtime.pipeline import Pipeline
    from emulation.board import make_board
    from emulation.device import build

    patch = pytest.MonkeyPatch()
    board = make_board(patch)
    driver = ctypes.CDLL("libcuda.so.1")
    patch.setattr(cuda, "compile_kernels", lambda source, *_: str(build(source)).encode() + b"\0")
    device = CudaDevice()
    board.trt.device = RealDevice(device, driver)
    patch.setattr(tensorrt_open, "make_device", lambda note: device)
    found = {"binding": type(device._driver).__name__, "name": device.name,
             "capability": device.capability, "memory": device.memory()}  # fmt: skip
    try:
        device.empty((1 << 40,), "uint8")
    except DeviceError as error:
        found["too much"] = str(error)
    with pytest.raises(DeviceError, match=r"refuses copy\.cu's image"):
        device.kernels(Path(root) / "runtime" / "ops" / "cuda" / "copy.cu", ("none",))
    options = {"max_tokens": 7, "temperature": 1.0}
    texts = {}
    for engine in ("onnxruntime", "tensorrt"):
        pipeline = Pipeline.load(bundle, engine=engine)
        texts[engine] = [
            pipeline.generate("abc", seed=seed, rule=rule, **options).result().token_ids
            for rule in ("threshold", "low_confidence", "random")
            for seed in range(2)
        ]
        if engine == "tensorrt":
            steps = pipeline.engines.device
            found |= {"captured": steps.num_captured, "replayed": steps.num_replayed,
                      "captures": steps.captures}  # fmt: skip
            found["kernels"] = [
                item for item in check_kernels(pipeline.model.ops) if not item["ok"]
            ]
            if os.environ.get("CUDA_STAND_IN_END") == "open":
                break
        pipeline.close()
    found["equal"] = texts["onnxruntime"] == texts["tensorrt"]
    if os.environ.get("CUDA_STAND_IN_END") != "open":
        del pipeline, steps
        gc.collect()
    found["left"] = driver.num_allocations()
    print(json.dumps(found), flush=True)
    return pipeline if "pipeline" in locals() else None


if __name__ == "__main__":
    left_open = main(*sys.argv[1:])
