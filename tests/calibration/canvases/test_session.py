"""A bundle opened to be recorded."""

import numpy as np
from dlm_edge.calibration.canvases.record import CanvasSettings
from dlm_edge.calibration.canvases.session import Session
from dlm_edge.runtime.bundle.bundle import open_bundle
from toy_bundle import write_toy

SMALL = CanvasSettings(per_stratum=2, num_decodes=4, num_windows=3, num_samples=4)


def test_windows_are_spread_over_all_of_the_text(tmp_path):
    bundle = open_bundle(write_toy(tmp_path))
    texts = [np.array([0, *(2 + (n + i) % 17 for i in range(16))], np.int32) for n in range(3)] * 40
    with Session(bundle, texts, SMALL, 0, None) as session:
        windows = session.windows()
    stream = np.concatenate(texts)
    assert np.array_equal(windows[0], stream[: len(windows[0])])
    assert np.array_equal(windows[-1], stream[-len(windows[-1]) :])
    assert len(stream) > 2 * len(windows[0])
