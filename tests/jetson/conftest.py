"""A traced block step, exported once per session: tracing takes seconds."""

import pytest
from untrained_draft import make_draft


@pytest.fixture(scope="session")
def draft(tmp_path_factory):
    return make_draft(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="session")
def typed_draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return make_draft(folder, target="orin-nano", precision="fp16")
