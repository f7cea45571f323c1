from typing import Any

from dlm_edge.runtime.decoding import DecodingRule
from dlm_edge.runtime.families.table import read_rule


def decoding(**values: Any) -> DecodingRule:
    """Gives the rule of these settings (None: not given); `threshold` where none is named."""
    return read_rule({name: value for name, value in values.items() if value is not None})
