"""Loads this checkout as `dlm_edge`, so that tests run whether it is installed or not."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "dlm_edge" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "dlm_edge", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dlm_edge"] = module
    spec.loader.exec_module(module)
