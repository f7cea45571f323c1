"""The report in a bundle."""

import json
from typing import Any

from dlm_edge.runtime.bundle.bundle import Bundle


def report_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads(bundle.member("report.json").read_bytes())
