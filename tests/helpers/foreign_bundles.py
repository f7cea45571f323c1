"""Bundles as they may come from anywhere: changed, cut, with members that nobody asked for."""

import io
import json
import zipfile

import pytest
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.errors import BundleError


def require_one_line(error: BundleError) -> None:
    assert "\n" not in str(error)


def refused(path, **options) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path, **options)
    require_one_line(caught.value)
    return str(caught.value)


def rezipped(data: bytes, change) -> bytes:
    """Writes the zip again with `change(entries)` applied to its list of (ZipInfo, bytes)."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = [(info, source.read(info)) for info in source.infolist()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for info, content in change(entries):
            target.writestr(info, content)
    return out.getvalue()


def with_manifest(data: bytes, change) -> bytes:
    def edit(entries):
        for info, content in entries:
            if info.filename == "manifest.json":
                value = json.loads(content)
                change(value)
                yield info, json.dumps(value).encode()
            else:
                yield info, content

    return rezipped(data, edit)
