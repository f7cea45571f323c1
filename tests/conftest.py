"""Loads this checkout as `dlm_edge`, so that tests run whether it is installed or not.

Also keeps a test run to itself: one thread per worker, and a cache folder of its own.
"""

import importlib.util
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Workers run side by side: more than one thread each makes all of them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if "dlm_edge" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "dlm_edge", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dlm_edge"] = module
    spec.loader.exec_module(module)

# Machines differ in speed: a limit on time would fail on the slow ones only.
# Continuous integration tries the same examples in every run; elsewhere every run tries others.
settings.register_profile(
    "machine-independent",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("machine-independent")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Draws without a seed are the same whichever tests this worker ran before."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_arrives():
    """A shell starts background jobs with SIGINT ignored, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Bundles unpack here, never into the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
