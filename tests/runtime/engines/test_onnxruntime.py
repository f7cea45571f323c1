import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import onnxruntime as backend
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import ConfigError, EngineError
from toy_bundle import BLOCK, CACHE, CONTEXTS, KEYS, RAMP, TABLE, VOCAB, toy_spec, write_toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def engines(bundle):
    engines = open_engines(bundle, threads=1)
    yield engines
    engines.close()


def run(engine, ids, start, kv=None):
    engine.inputs["ids"][...] = ids
    engine.inputs["start"][...] = start
    if kv is not None:
        engine.inputs["kv"][: len(kv)] = kv
    engine.run()
    return engine.outputs["logits"].copy(), engine.outputs["kv_new"].copy()


def test_a_run_computes_the_graph_on_the_buffers(engines):
    engine = engines.engine(toy_spec(context=CONTEXTS[1]))
    ids = np.array([[3, 0, 7, 19]])
    kv = np.random.default_rng(0).standard_normal((CONTEXTS[1], *CACHE)).astype(np.float32)
    logits, new = run(engine, ids, 4, kv)
    np.testing.assert_allclose(logits[0], TABLE[ids[0]] + RAMP * kv[:4].sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(new.reshape(BLOCK, 8), KEYS[ids[0]])


def test_buffers_stay_where_they_are(engines):
    engine = engines.engine(toy_spec(context=CONTEXTS[0]))
    addresses = [array.ctypes.data for array in (*engine.inputs.values(), *engine.outputs.values())]
    run(engine, 1, 0)
    engine = engines.engine(toy_spec(context=CONTEXTS[0]))
    again = [array.ctypes.data for array in (*engine.inputs.values(), *engine.outputs.values())]
    assert addresses == again


def test_a_smaller_context_is_a_prefix_of_the_larger_one(engines):
    small, large = (engines.engine(toy_spec(context=context)) for context in CONTEXTS)
    assert np.shares_memory(small.inputs["kv"], large.inputs["kv"])
    large.inputs["kv"][...] = np.arange(CONTEXTS[1]).reshape(-1, 1, 1, 1, 1, 1)
    np.testing.assert_array_equal(small.inputs["kv"], large.inputs["kv"][: CONTEXTS[0]])
    assert small.inputs["ids"].ctypes.data != large.inputs["ids"].ctypes.data
    first, _ = run(small, 5, 3)
    second, _ = run(large, 5, 3)
    np.testing.assert_array_equal(first, second)


def test_all_shapes_of_a_file_share_one_session(engines):
    first, second = (engines.engine(toy_spec(context=context)) for context in CONTEXTS)
    assert first._session is second._session


def test_an_unknown_shape_names_the_shapes_there_are(engines):
    with pytest.raises(EngineError, match=f"denoise .rows {BLOCK}, context {CONTEXTS[0]}."):
        engines.engine(toy_spec(5, 8))


def test_a_failing_run_is_one_line_of_engine_error(engines):
    engine = engines.engine(toy_spec(context=CONTEXTS[0]))
    engine.inputs["ids"][...] = VOCAB + 5
    with pytest.raises(EngineError) as caught:
        engine.run()
    assert "\n" not in str(caught.value)


def test_a_manifest_that_names_other_tensors_is_refused(tmp_path):
    spec = toy_spec()
    renamed = tuple(replace(item, name=f"x_{item.name}") for item in spec.inputs)
    changed = replace(spec, inputs=renamed)
    engines = open_engines(open_bundle(write_toy(tmp_path, graphs=(changed,))))
    with pytest.raises(EngineError, match="x_ids"):
        engines.engine(toy_spec(context=CONTEXTS[0]))


def test_the_symbolic_session_takes_any_context_that_the_manifest_states(tmp_path):
    engines = open_engines(open_bundle(write_toy(tmp_path, graphs=(toy_spec(context=6),))))
    engine = engines.engine(toy_spec(context=6))
    engine.inputs["start"][...] = 6
    engine.run()
    assert engine.outputs["logits"].shape == (1, BLOCK, VOCAB)


def test_a_graph_that_is_no_graph_is_one_line_of_engine_error(bundle, tmp_path):
    copy = type(bundle)(
        path=bundle.path, sha256=bundle.sha256, manifest=bundle.manifest, folder=tmp_path
    )
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "denoise.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError) as caught:
        open_engines(copy).engine(toy_spec())
    assert "\n" not in str(caught.value)


def test_a_graph_is_opened_behind_those_that_read_what_it_gives(bundle, monkeypatch):
    spec = toy_spec(context=CONTEXTS[0])
    head = replace(spec, name="head", file="graphs/head.onnx")
    manifest = replace(bundle.manifest, graphs=(spec, head))
    engines = open_engines(replace(bundle, manifest=manifest), "onnxruntime", 1)
    opened = []
    monkeypatch.setattr(engines, "_open", lambda spec: opened.append(spec.file))
    engines._open_from(spec.file)
    engines._open_from(head.file)
    assert opened == [head.file, spec.file]


def test_auto_says_what_it_took_and_why(bundle):
    engines = open_engines(bundle)
    assert engines.name == "onnxruntime-cpu"
    assert "auto" in engines.reason
    assert 1 <= engines.threads <= backend.MAX_DEFAULT_THREADS
    assert engines.specs == bundle.manifest.graphs


def test_tensorrt_is_one_clear_line(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="needs the Python package tensorrt"):
        open_engines(bundle, "tensorrt")


@pytest.mark.parametrize(("name", "threads"), [("cuda", None), ("auto", 0), ("auto", -1)])
def test_impossible_options_are_config_errors(bundle, name, threads):
    with pytest.raises(ConfigError):
        open_engines(bundle, name, threads)


def test_a_missing_onnxruntime_names_the_extra(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'dlm-edge\[cpu\]'"):
        open_engines(bundle)


@pytest.mark.parametrize(("target", "foreign"), [("orin-nano", True), ("cpu", False)])
def test_int8_graphs_of_another_target_are_not_fused_and_it_says_so(bundle, target, foreign):
    """Fused, weights of all 8 bits saturate on x86 without VNNI."""
    manifest = replace(bundle.manifest, precision="int8", target=target)
    notes = []
    engines = open_engines(replace(bundle, manifest=manifest), "onnxruntime", 1, note=notes.append)
    engines.engine(toy_spec(context=CONTEXTS[0]))
    (session,) = engines._sessions.values()
    options = session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    if foreign:
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
        assert "made for orin-nano" in notes[0]
        assert "made for orin-nano" in engines.reason
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.disable_quant_qdq")
        assert notes == []
    engines.close()


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnxruntime_sends_no_telemetry_unless_the_user_wants_it(monkeypatch, before, after):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if before is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before)
    backend.import_backend()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'onnxruntime'"), "dlm-edge.cpu."),
        (ImportError("numpy.core.multiarray failed to import"), "numpy<2"),
        (AttributeError("_ARRAY_API not found"), "numpy<2"),
        (ImportError("libonnxruntime.so: file too short"), "--force-reinstall"),
    ],
)
def test_a_package_that_cannot_be_imported_says_what_to_install(monkeypatch, error, remedy):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                raise error

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(EngineError, match=remedy):
        backend.import_backend()


@pytest.mark.parametrize(
    "error", [RuntimeError("PosixThread pthread_create failed, error code: 12"), MemoryError()]
)
def test_too_little_memory_is_named_and_onnxruntime_is_not_asked_twice(
    bundle, monkeypatch, capfd, error
):
    asked = []

    def create(self, *_):
        asked.append(self)
        raise error

    session = backend.import_backend().InferenceSession
    monkeypatch.setattr(session, "_create_inference_session", create)
    engines = open_engines(bundle, threads=1)
    with pytest.raises(EngineError, match="too little memory") as caught:
        engines.engine(toy_spec())
    assert "export it again" not in str(caught.value)
    assert len(asked) == 1
    assert capfd.readouterr().out == ""
