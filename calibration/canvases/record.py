"""Records calibration canvases: the real decoding loop on the floating-point engine, and masks.

Half of a set comes from `generate`, the same loop that will run on the device, over prompts of
several lengths, every block size and, where the family can, gaps in a text. The other half comes
from the family's own bound, whose canvases are masked as in training. Nothing here names a family:
what a block size or a gap means is asked of its update rule, and a shape that no request reaches
is met by the bound. Where a text is written token by token, reading a known one gives the same
rows in a hundredth of the runs: then the bound over texts is all there is.

`clean_canvases` and `noise_canvases` are the two sets that others calibrate on, for comparison:
the same texts without a mask, and random tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines import EngineSet
from ...runtime.families.window import banned_ids
from ...runtime.generate import generate
from .canvases import CanvasSet
from .session import CanvasSettings, Progress, Session

__all__ = ["CanvasSettings", "clean_canvases", "noise_canvases", "record_canvases"]


def record_canvases(
    bundle: Bundle,
    prompts: Sequence[np.ndarray],
    settings: CanvasSettings | None = None,
    *,
    seed: int,
    engines: EngineSet | None = None,
    banned: Sequence[int] = (),
    progress: Progress | None = None,
) -> CanvasSet:
    """Records what the decoding loop meets, mixed with training-style masks.

    Args:
        bundle: The floating-point model; its tokenizer is not used.
        prompts: Texts of the kind the model will write, (L,) int32 each, start token first.
        seed: Of draws, masks and of what is kept: equal seeds give equal sets.
        engines: The bundle's, if they are open already; else they are opened and closed here.

    Raises:
        CalibrationError: No prompts, prompts shorter than a block, or too little memory allowed.
    """
    settings = settings or CanvasSettings()
    with Session(bundle, prompts, settings, seed, engines) as session:
        session.recorder.source = "decode"
        if session.read:
            session.expect(0, progress)
            session.mask(session.windows())
            return session.result("decode")
        session.expect(sum(map(session.num_texts, session.modes)), progress)
        for number, request in enumerate(session.requests(banned)):
            generate(session.model, request)
            session.recorder.flush()
            session.step(number)
        session.recorder.source = "random"
        session.mask(session.windows())
        session.fill()
        return session.result("decode")


def _unmasked_canvases(
    kind: str,
    windows: Callable[[Session], list[np.ndarray]],
    bundle: Bundle,
    prompts: Sequence[np.ndarray],
    settings: CanvasSettings | None = None,
    *,
    seed: int,
    engines: EngineSet | None = None,
    progress: Progress | None = None,
) -> CanvasSet:
    settings = settings or CanvasSettings()
    with Session(bundle, prompts, settings, seed, engines, unmasked=True) as session:
        session.expect(0, progress)
        session.recorder.source = kind
        session.mask(windows(session), unmask=True)
        return session.result(kind)


def _random_windows(session: Session) -> list[np.ndarray]:
    rng = np.random.default_rng((session.seed, 2))
    allowed = np.setdiff1d(np.arange(session.manifest.vocab_size), banned_ids(session.manifest))
    return [rng.choice(allowed.astype(np.int32), len(window)) for window in session.windows()]


clean_canvases = partial(_unmasked_canvases, "clean", Session.windows)
"""Records the same texts unmasked: what calibration on clean text sees."""
noise_canvases = partial(_unmasked_canvases, "noise", _random_windows)
"""Records uniformly random tokens, as long as the texts would be."""
