# ruff: noqa: N802, N815
"""Stand-ins for cuda-bindings' driver module and for pycuda's, on an emulated device.

Signatures and results are those of the real modules (a status first, in cuda-bindings). Memory is
what malloc gives; kernels run as on `EmulatedDevice`; a stream being captured records.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
from emulation.device import build


class Status(int):
    name = "CUDA_ERROR_STAND_IN"


OK = Status(0)


class Bindings:
    """`cuda.bindings.driver`; `failing` calls give status 2."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, failing=()):
        self.failing = set(failing)
        self.memory, self.calls, self.recorded, self.freed = {}, [], None, []

    def __getattribute__(self, name):
        if name.startswith("cu"):
            if name in self.failing:
                return lambda *arguments: (Status(2), None, None)
            self.calls.append(name)
        return object.__getattribute__(self, name)

    def _run(self, call):
        if self.recorded is None:
            call()
        else:
            self.recorded.append(call)
        return (OK,)

    def cuInit(self, flags):
        return (OK,)

    def cuDeviceGet(self, ordinal):
        return (OK, ordinal)

    def cuDeviceGetName(self, length, device):
        return (OK, b"Orin".ljust(length, b"\0"))

    def cuDeviceGetAttribute(self, attribute, device):
        return (OK, {75: 8, 76: 7}[attribute])

    def cuDevicePrimaryCtxRetain(self, device):
        return (OK, 11)

    def cuCtxSetCurrent(self, context):
        assert context == 11
        return (OK,)

    def cuStreamCreate(self, flags):
        assert flags == 1
        return (OK, 77)

    def cuMemAlloc(self, size):
        memory = np.full(size + 256, 0xA5, np.uint8)
        pointer = -(-memory.ctypes.data // 256) * 256
        self.memory[pointer] = memory
        return (OK, pointer)

    def cuMemFree(self, pointer):
        self.freed.append(self.memory.pop(int(pointer)))
        return (OK,)

    def cuMemHostAlloc(self, size, flags):
        assert flags == 2
        return self.cuMemAlloc(size)

    cuMemFreeHost = cuMemFree

    def cuMemHostGetDevicePointer(self, pointer, flags):
        assert flags == 0
        return (OK, pointer)

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        assert stream == 77
        assert self.recorded is None
        ctypes.memmove(target, source, size)
        return (OK,)

    def cuMemcpyDtoHAsync(self, target, source, size, stream):
        return self.cuMemcpyHtoDAsync(target, source, size, stream)

    def cuMemcpyDtoDAsync(self, target, source, size, stream):
        assert stream == 77
        return self._run(lambda: ctypes.memmove(target, source, size))

    def cuMemsetD8Async(self, target, value, count, stream):
        assert stream == 77
        return self._run(lambda: ctypes.memset(target, value, count))

    def cuModuleLoadData(self, image):
        return (OK, ctypes.CDLL(image.decode()))

    def cuModuleGetFunction(self, module, name):
        return (OK, (module, ctypes.cast(module[name.decode()], ctypes.c_void_p)))

    def cuLaunchKernel(self, kernel, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        assert (gy, gz, by, bz, shared, stream, extra) == (1, 1, 1, 1, 0, 77, 0)
        values, kinds = arguments
        assert kinds == (ctypes.c_uint64,) * len(values)
        library, function = kernel
        packed = (ctypes.c_uint64 * len(values))(*values)

        def run():
            assert not library.emulate(function, gx, bx, packed, len(values), False)

        return self._run(run)

    def cuStreamSynchronize(self, stream):
        assert stream == 77
        assert self.recorded is None
        return (OK,)

    def cuMemGetInfo(self):
        return (OK, 1 << 30, 1 << 33)

    def cuStreamBeginCapture(self, stream, mode):
        assert (stream, mode) == (77, 1)
        self.recorded = []
        return (OK,)

    def cuStreamEndCapture(self, stream):
        recorded, self.recorded = self.recorded, None
        return (OK, recorded)

    def cuGraphInstantiate(self, graph, flags):
        assert flags == 0
        return (OK, list(graph))

    def cuGraphDestroy(self, graph):
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph, stream):
        assert stream == 77
        for call in graph:
            call()
        return (OK,)


class Pycuda:
    """`pycuda.driver` over the same calls, as far as we use it."""

    class Error(Exception):
        pass

    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)

    def __init__(self, bindings):
        self._bindings = bindings
        self.pushed, self.destroyed = 0, 0

    def _do(self, name, *arguments):
        status, *results = getattr(self._bindings, name)(*arguments)
        if status:
            raise self.Error(f"{name} failed: stand-in")
        return results[0] if results else None

    def init(self):
        self._do("cuInit", 0)

    def Device(self, ordinal):
        cuda = self

        class Context:
            def push(self):
                cuda.pushed += 1

            def pop(self):
                if not cuda.pushed:
                    raise cuda.Error("context::pop failed: cannot pop non-current context")
                cuda.pushed -= 1

            def __del__(self):
                cuda.destroyed += 1

        return SimpleNamespace(
            retain_primary_context=Context, name=lambda: "Orin", compute_capability=lambda: (8, 7)
        )

    def Stream(self, flags):
        handle = self._do("cuStreamCreate", flags)
        return SimpleNamespace(
            handle=handle, synchronize=lambda: self._do("cuStreamSynchronize", handle)
        )

    def mem_alloc(self, size):
        cuda, pointer = self, self._do("cuMemAlloc", size)

        class DeviceAllocation:
            def __int__(self):
                return pointer

            def __del__(self):
                cuda._do("cuMemFree", pointer)

        return DeviceAllocation()

    def memcpy_htod_async(self, target, source, stream):
        self._do("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, stream.handle)

    def memcpy_dtoh_async(self, target, source, stream):
        self._do("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, stream.handle)

    def memcpy_dtod_async(self, target, source, size, stream):
        self._do("cuMemcpyDtoDAsync", target, source, size, stream.handle)

    def memset_d8_async(self, target, value, count, stream):
        self._do("cuMemsetD8Async", target, value, count, stream.handle)

    def pagelocked_zeros(self, shape, dtype, order="C", mem_flags=0):
        assert mem_flags == 2

        kind = np.dtype(dtype)

        class Allocation(ctypes.c_char * (int(np.prod(shape)) * kind.itemsize)):
            def get_device_pointer(self):
                return ctypes.addressof(self)

        return np.ndarray(shape, kind, buffer=Allocation())

    def module_from_buffer(self, image):
        module = self._do("cuModuleLoadData", image)
        cuda = self

        class Function:
            def __init__(self, name):
                self._function = cuda._do("cuModuleGetFunction", module, name.encode())

            def prepare(self, kinds):
                assert set(kinds) == {"Q"}
                self._kinds = kinds

            def prepared_async_call(self, grid, block, stream, *arguments):
                assert len(arguments) == len(self._kinds)
                values = (tuple(arguments), (ctypes.c_uint64,) * len(arguments))
                cuda._do("cuLaunchKernel", self._function, *grid, 1, *block, 0, stream.handle,
                         values, 0)  # fmt: skip

        return SimpleNamespace(get_function=Function)

    def mem_get_info(self):
        return (1 << 30, 1 << 33)


def images(source, capability, begins):
    """In place of NVRTC: the emulation's library for a source."""
    assert capability == (8, 7)
    begins()
    return str(build(source)).encode()
