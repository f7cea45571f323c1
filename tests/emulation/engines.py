"""Any EngineSet with its buffers on a device: what a device loop sees of an engine there."""

import numpy as np
from dlm_edge.runtime.gpu.device import Device


class DeviceEngine:
    def __init__(self, inner, device: Device, kv):
        self.spec = inner.spec
        self._inner, self._device = inner, device
        self.inputs = {
            tensor.name: kv.rows(0, tensor.shape[0]) if tensor.role == "kv" else self._zeros(tensor)
            for tensor in self.spec.inputs
        }
        self.outputs = {t.name: device.empty(t.shape, t.dtype) for t in self.spec.outputs}

    def _zeros(self, tensor):
        array = self._device.empty(tensor.shape, tensor.dtype)
        self._device.zero(array)
        return array

    def run(self):
        for name, buffer in self.inputs.items():
            np.copyto(self._inner.inputs[name], self._device.download(buffer))
        self._inner.run()
        for name, buffer in self.outputs.items():
            self._device.upload(buffer, np.asarray(self._inner.outputs[name]))


class DeviceEngines:
    reason = "a test"
    threads = 1

    def __init__(self, inner, device: Device):
        self.name = f"{inner.name} on {device.name}"
        self.specs = inner.specs
        self._inner, self._device = inner, device
        self.device = device
        self._engines = {}
        self._kv = None
        for tensor in max(self.specs, key=lambda spec: spec.context).inputs:
            if tensor.role == "kv":
                self._kv = device.empty(tensor.shape, tensor.dtype)
                rows = np.full(tensor.shape, 1e6, tensor.dtype)  # rows nobody stored
                device.upload(self._kv, rows)

    def engine(self, spec):
        if spec.key not in self._engines:
            self._engines[spec.key] = DeviceEngine(self._inner.engine(spec), self._device, self._kv)
        return self._engines[spec.key]

    def close(self):
        self._inner.close()
