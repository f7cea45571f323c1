"""A bounded sample is an even one."""

from collections import Counter

import numpy as np
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.canvases.recorder import Reservoir
from manifests import bare_spec


def canvas(number):
    return RecordedRun(
        spec=bare_spec("denoise", 4, 8), mask_ratio=0.5, progress=0.0, weight=1.0,
        source="decode", committing=np.zeros(4, bool),
        inputs=Inputs({"ids": np.full((1, 4), number, np.int32)}),
    )  # fmt: skip


def test_every_canvas_of_a_stratum_is_kept_equally_often():
    kept = Counter()
    for seed in range(400):
        reservoir = Reservoir(per_stratum=2, max_bytes=None, seed=seed)
        for number in range(4):
            reservoir.offer(canvas(number))
        kept.update(int(item.inputs["ids"][0, 0]) for item in reservoir)
    # 200 times each; the standard deviation is 10.
    assert all(150 < kept[number] < 250 for number in range(4)), kept
