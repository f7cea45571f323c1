"""What every rule that writes one text answers alike: see UpdateRule."""

from __future__ import annotations

import numpy as np

from .window import Text


class TextRule:
    """The state that a rule shows: `_text` and `_num_given` from the start, the rest as it goes."""

    _text: Text
    _num_given: int
    """Ids that the request gave; 0 when infilling."""
    _done = False
    _ended = False
    _approximate = False

    @property
    def done(self) -> bool:
        """See UpdateRule."""
        return self._done

    @property
    def tokens(self) -> np.ndarray:
        """See UpdateRule."""
        return self._text.ids

    @property
    def num_given(self) -> int:
        """See UpdateRule."""
        return self._num_given

    @property
    def ended(self) -> bool:
        """See UpdateRule."""
        return self._ended

    @property
    def approximate(self) -> bool:
        """See UpdateRule."""
        return self._approximate
