"""Engines of several texts at once, made of engines of one."""

import numpy as np
from dlm_edge.runtime.side_by_side import for_batch


class BatchEngine:
    """One run for several texts: each slot by an engine of its own."""

    def __init__(self, spec, slots, kv):
        self.spec, self._slots = spec, slots
        self.inputs = {
            t.name: kv[: spec.context] if t.role == "kv" else np.zeros(t.shape, t.dtype)
            for t in spec.inputs
        }
        self.outputs = {t.name: np.zeros(t.shape, t.dtype) for t in spec.outputs}

    def run(self):
        for index, slot in enumerate(self._slots):
            for tensor in self.spec.inputs:
                own = np.take(self.inputs[tensor.name], [index], axis=tensor.batch_axis)
                np.copyto(slot.inputs[tensor.name], own)
            slot.run()
            for tensor in self.spec.outputs:
                buffer = np.moveaxis(self.outputs[tensor.name], tensor.batch_axis, 0)
                own = np.moveaxis(slot.outputs[tensor.name], tensor.batch_axis, 0)
                buffer[index] = own[0]


class BatchEngines:
    """Engines of so many texts at once."""

    name, device, reason, threads = "batches", None, "a test", 1

    def __init__(self, make, batch):
        self._slots = [make() for _ in range(batch)]
        self.model = getattr(self._slots[0], "model", None)
        self._own = {for_batch(spec, batch).key: spec for spec in self._slots[0].specs}
        self.specs = tuple(for_batch(spec, batch) for spec in self._slots[0].specs)
        rows = [t for t in max(self.specs, key=lambda s: s.context).inputs if t.role == "kv"]
        self._kv = np.full(rows[0].shape, 1e6, np.float32) if rows else None
        self._engines = {}

    def engine(self, spec):
        if spec.key not in self._engines:
            slots = [engines.engine(self._own[spec.key]) for engines in self._slots]
            self._engines[spec.key] = BatchEngine(spec, slots, self._kv)
        return self._engines[spec.key]

    @property
    def num_runs(self):
        return sum(run[0] != "head" for run in self._slots[0].runs)

    def close(self):
        pass


class OneOrMore:
    """Engines of one text and of so many at once, as a bundle with a batch has them."""

    name, device, reason, threads = "one or more", None, "a test", 1

    def __init__(self, make, batch):
        self._by_batch = {1: make(), batch: BatchEngines(make, batch)}
        self.specs = tuple(s for engines in self._by_batch.values() for s in engines.specs)

    def engine(self, spec):
        return self._by_batch[spec.batch].engine(spec)

    @property
    def num_shared_runs(self):
        return self._by_batch[max(self._by_batch)].num_runs

    def close(self):
        pass
