"""Which rows of a draft-and-verify run the next tokens come from."""

import numpy as np
import pytest
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.canvases.recorder import Recorder, RecordingEngines, kept_rows
from dlm_edge.calibration.scales.activations import _Collector
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.families.tidar.layout import draft_layout, draft_rows
from dlm_edge.runtime.generate import generate
from draft_engines import DraftEngines, Model, draft_manifest, draft_request
from manifests import bare_spec


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_they_are_the_kept_drafts_and_the_masks_of_their_proposal(block):
    rows = draft_rows(block)
    masked = np.arange(rows) >= block
    for count in range(1, block + 1):
        wanted = [*range(count), *range(count * block, count * block + block)]
        found = kept_rows(draft_layout(block).visible, masked, count)
        assert np.flatnonzero(found).tolist() == wanted


def test_a_recorded_run_counts_only_the_rows_that_something_reads():
    model = Model(30, seed=6, agreement=3.0)
    recorder = Recorder(model.mask, per_stratum=100, seed=0)
    engines = DraftEngines(model, [4])
    asked = draft_request(max_tokens=15, banned_ids=(0,))
    generate(load_model(draft_manifest(engines), RecordingEngines(engines, recorder)), asked)
    canvases = [canvas for canvas in recorder.canvases() if canvas.mask_ratio > 0.5]
    starts = sorted(int(canvas.inputs["start"][0]) for canvas in canvases)
    kept = dict(zip(starts, np.diff(starts).tolist(), strict=False))
    assert len(kept) > 2
    for canvas in canvases:
        count = kept.get(int(canvas.inputs["start"][0]))
        if count is None:  # the last run: nobody tells what came of it
            assert canvas.row_weights[4:].all()
            continue
        counts = [*range(count), *range(count * 4, count * 4 + 4)]
        assert np.flatnonzero(canvas.row_weights).tolist() == counts


def test_rows_that_weigh_nothing_leave_no_trace_in_ranges():
    visible = np.array([True, False, True])
    canvas = RecordedRun(
        spec=bare_spec("step", 3, 8), inputs=Inputs({}), mask_ratio=0.9, progress=1.0,
        committing=visible, weight=1.0, source="decode", rest=0.0,
    )  # fmt: skip
    collector = _Collector("x", 1, 0)
    collector.add(np.array([[1.0, 2.0], [90.0, 90.0], [3.0, 1.0]], np.float32), canvas)
    found = collector.finish()
    assert found.channel_max.tolist() == [3.0, 2.0]
    assert found.histogram.maximum == 3.0
    assert sorted(found.rows[:, 0].tolist()) == [1.0, 3.0]
