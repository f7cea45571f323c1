import json
import zipfile
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dlm_edge.calibration.forms import cpu
from dlm_edge.export import pack
from dlm_edge.export.pack import ExportSettings, export_checkpoint, untrained_blocks
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.engines import open_engines
from dlm_edge.runtime.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    DlmError,
    EngineError,
)
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.check import check_bundle
from reports import report_of
from small_graphs import set_weight, weights_of
from tiny_checkpoint import make_checkpoint
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "model.dlm"
    settings = ExportSettings(decoding={"rule": "factor", "factor": 1.0})
    return path, export_checkpoint(checkpoint, path, settings)


@pytest.fixture(scope="module")
def exported_fp16(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "half.dlm"
    card = path.parent / "own.md"
    card.write_text("# Written by hand\n")
    settings = ExportSettings(
        precision="fp16", target="orin-nano", blocks=(4, 8), contexts=(8,), card=card
    )
    return path, export_checkpoint(checkpoint, path, settings)


@pytest.fixture
def traced_before(exported, monkeypatch):
    """Saves the seconds that tracing takes where something else is tested."""
    graph = open_bundle(exported[0]).member("graphs/denoise.onnx")
    monkeypatch.setattr(pack, "trace", lambda *args: ir.from_proto(onnx.load(str(graph))))


def num_layer_weights(bundle):
    model = bundle.manifest.model
    dim, hidden, layers = model["dim"], model["hidden_dim"], model["num_layers"]
    return layers * (4 * dim * dim + 3 * dim * hidden + 2 * dim) + dim


def shapes(bundle):
    return [(spec.rows, spec.context) for spec in bundle.manifest.graphs]


def test_a_checkpoint_becomes_a_bundle_that_runs(exported):
    path, report = exported
    bundle = open_bundle(path, expect_sha256=report["sha256"])
    assert shapes(bundle) == [(4, 8), (8, 8), (4, 16), (8, 16), (16, 8)]
    assert bundle.manifest.family == "mdlm"
    assert bundle.manifest.decoding == {"rule": "factor", "factor": 1.0}
    assert bundle.manifest.model["num_parameters"] == 2 * 258 * 32 + num_layer_weights(bundle)
    figures = check_bundle(bundle, load_model(bundle.manifest, open_engines(bundle, threads=1)))
    assert figures["ok"]
    assert figures["max_relative_error"] < 1e-5


def test_the_whole_canvas_lets_a_gap_see_its_right_side_and_a_causal_graph_does_not(
    exported, causal_checkpoint, tmp_path
):
    causal = tmp_path / "ar.dlm"
    export_checkpoint(causal_checkpoint, causal, ExportSettings(blocks=(8,)))
    changes = []
    for path in (exported[0], causal):
        bundle = open_bundle(path)
        shapes = [spec for spec in bundle.manifest.graphs if spec.name == "denoise"]
        spec = max(shapes, key=lambda spec: spec.rows)
        engine = open_engines(bundle, "onnxruntime", 1).engine(spec)
        engine.inputs["start"][:] = 0
        seen = []
        for last in (40, 90):
            engine.inputs["ids"][:] = 1
            engine.inputs["ids"][0, [0, spec.rows - 1]] = 0, last
            engine.run()
            seen.append(engine.outputs[spec.result.name][0, 2].copy())
        changes.append(np.abs(seen[0] - seen[1]).max())
    assert changes[0] > 1e-2
    assert changes[1] == 0


def test_parity_with_torch_is_in_the_report_for_every_shape(exported):
    path, report = exported
    assert report_of(open_bundle(path))["parity"] == report["parity"]
    rows = report["parity"]["denoise"]["shapes"]
    assert len(rows) == 5
    for row in rows:
        assert row["against_torch"]["max_relative_error"] < 1e-5
        assert row["against_torch"]["top1_agreement"] > 0.99
        assert len(row["against_torch"]["max_abs_error_by_mask_ratio"]) == 11
        assert row["cached_against_uncached"]["max_relative_error"] < 1e-5
    json.dumps(report, allow_nan=False)


def test_the_bundle_says_where_it_comes_from_without_naming_this_machine(exported):
    path, _ = exported
    bundle = open_bundle(path)
    training = bundle.manifest.provenance["training"]
    assert training["tokens_seen"] == 1792
    assert training["settings"] == {"data": "stories.txt", "lr": 1e-3}
    assert training["run_state"] == {"step": 7}
    assert "torch" in bundle.manifest.provenance["versions"]
    card = bundle.member("card.md").read_text("utf-8")
    assert "stories.txt" in card
    assert "1,792" in card
    for name in bundle.manifest.members:
        data = bundle.member(name).read_bytes()
        assert b"/home/someone" not in data
        assert b"site-packages" not in data


def test_exporting_twice_gives_equal_bytes(exported, checkpoint, tmp_path):
    _, report = exported
    settings = ExportSettings(decoding={"rule": "factor", "factor": 1.0})
    again = export_checkpoint(checkpoint, tmp_path / "again.dlm", settings)
    assert again["sha256"] == report["sha256"]


def test_fp16_halves_the_weights_and_says_what_it_means(exported, exported_fp16):
    whole, half = open_bundle(exported[0]), open_bundle(exported_fp16[0])
    name = "graphs/denoise.weights"
    ratio = half.manifest.members[name].size / whole.manifest.members[name].size
    assert 0.5 <= ratio < 0.75  # the norms' weights stay float32
    assert report_of(half)["arithmetic"].startswith("float16 weights and arithmetic")
    assert half.manifest.precision == "fp16"
    assert half.manifest.target == "orin-nano"
    for spec in half.manifest.graphs:  # a board reads all of the cache in every run
        kinds = {tensor.role: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        assert {role for role, kind in kinds.items() if kind == "float16"} == {"kv", "kv_new"}
    assert half.member("card.md").read_text("utf-8").startswith("# Written by hand")
    assert shapes(half) == [(4, 8), (8, 8), (16, 8)]
    assert check_bundle(half, load_model(half.manifest, open_engines(half, threads=1)))["ok"]


def test_the_causal_family_decodes_token_by_token(causal_checkpoint, tmp_path):
    path = tmp_path / "ar.dlm"
    export_checkpoint(causal_checkpoint, path, ExportSettings(blocks=(8,), contexts=(16,)))
    bundle = open_bundle(path)
    assert shapes(bundle) == [(1, 16), (8, 16), (1, 0), (32, 0)]
    assert bundle.manifest.logit_shift == 1
    assert bundle.manifest.mask_token_id is None
    assert check_bundle(bundle, load_model(bundle.manifest, open_engines(bundle, threads=1)))["ok"]


def refused(error, checkpoint, path, **settings) -> str:
    with pytest.raises(error) as caught:
        export_checkpoint(checkpoint, path, ExportSettings(**settings))
    assert "\n" not in str(caught.value)
    assert not path.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"precision": "fp64"}, "fp32, fp16, int8 or int4"),
        ({"force": True}, "--force has no meaning with --precision fp32"),
        ({"max_loss": 0.0}, "--max-loss must be more than 0"),
        ({"target": "toaster"}, "orin-nano"),
        ({"blocks": (32,)}, "--block 32"),
        ({"contexts": (17,)}, "--context 17"),
        ({"decoding": {"rule": "guess"}}, "guess"),
    ],
)
def test_options_that_cannot_be_met_are_config_errors(checkpoint, tmp_path, settings, word):
    assert word in refused(ConfigError, checkpoint, tmp_path / "x.dlm", **settings)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(checkpoint, tmp_path):
    refused(BundleError, checkpoint, tmp_path / "missing" / "x.dlm")
    refused(ConfigError, checkpoint, tmp_path / "x.onnx")
    (tmp_path / "folder.dlm").mkdir()
    with pytest.raises(BundleError):
        export_checkpoint(checkpoint, tmp_path / "folder.dlm", ExportSettings())


def test_a_missing_checkpoint_is_one_line(tmp_path):
    refused(CheckpointError, tmp_path / "missing", tmp_path / "x.dlm")


def test_an_unknown_family_is_one_line(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "family": "unheard"}))
    assert "unheard" in refused(DlmError, copy, tmp_path / "x.dlm")


def test_a_tokenizer_with_more_tokens_than_the_model_is_one_line(tmp_path):
    make_checkpoint(tmp_path / "other", vocab_size=300)
    text = (tmp_path / "other" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "other" / "tokenizer.json").write_text(with_more_tokens(text, 43))
    assert "301 tokens" in refused(ConfigError, tmp_path / "other", tmp_path / "x.dlm")


def with_more_tokens(tokenizer_json, count):
    """Adds so many special tokens to a tokenizer."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens([f"<|more {number}|>" for number in range(count)])
    return tokenizer.to_str()


def test_text_that_cannot_be_read_is_one_line(checkpoint, tmp_path):
    refused(DataError, checkpoint, tmp_path / "x.dlm", data=tmp_path / "missing.txt")
    refused(DataError, checkpoint, tmp_path / "x.dlm", card=tmp_path / "missing.md")


def test_export_fails_beyond_tolerance_and_writes_nothing(
    checkpoint, tmp_path, monkeypatch, traced_before
):
    def wrong(model):
        for name, array in weights_of(model).items():
            if array.ndim == 2:
                set_weight(model, name, array * np.float32(1.05))

    monkeypatch.setattr(cpu, "store_fp16", wrong)
    message = refused(EngineError, checkpoint, tmp_path / "x.dlm", precision="fp16")
    assert "relative error" in message
    assert "nothing was written" in message


def test_an_interrupted_export_leaves_nothing_under_the_final_name(
    checkpoint, tmp_path, monkeypatch, traced_before
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pack, "golden_vectors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, tmp_path / "x.dlm", ExportSettings())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_survives_a_failed_export(
    exported, checkpoint, tmp_path, monkeypatch, traced_before
):
    path = tmp_path / "x.dlm"
    path.write_bytes(exported[0].read_bytes())
    monkeypatch.setattr(pack, "require_clean", lambda model, name, **rules: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_checkpoint(checkpoint, path, ExportSettings())
    assert path.read_bytes() == exported[0].read_bytes()


def test_weights_lie_aligned_in_the_file(exported):
    bundle = open_bundle(exported[0])
    model = onnx.load(str(bundle.member("graphs/denoise.onnx")), load_external_data=False)
    offsets = [
        int(entry.value)
        for item in model.graph.initializer
        for entry in item.external_data
        if entry.key == "offset"
    ]
    assert offsets
    assert all(offset % 64 == 0 for offset in offsets)


def test_the_zip_holds_the_members_and_the_manifest_only(exported):
    with zipfile.ZipFile(exported[0]) as source:
        assert sorted(source.namelist()) == [
            "card.md",
            "golden.json",
            "graphs/denoise.onnx",
            "graphs/denoise.weights",
            "manifest.json",
            "report.json",
            "tokenizer.json",
        ]


def test_full_alone_gives_the_whole_canvas_alone(checkpoint, tmp_path, traced_before):
    path = tmp_path / "canvas.dlm"
    export_checkpoint(checkpoint, path, ExportSettings(blocks=("full",)))
    assert shapes(open_bundle(path)) == [(16, 8)]


def test_a_causal_model_has_no_whole_canvas(causal_checkpoint, tmp_path):
    refused(ConfigError, causal_checkpoint, tmp_path / "x.dlm", blocks=("full",))


def test_a_default_block_without_a_graph_is_refused_before_tracing(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.delattr(pack, "trace")
    settings = ExportSettings(decoding={"block_size": 7})
    with pytest.raises(ConfigError, match="no graph of block size 7"):
        export_checkpoint(checkpoint, tmp_path / "x.dlm", settings)


@pytest.mark.parametrize(
    ("family", "blocks", "said"),
    [
        ("mdlm", (16, 48, 64), "note: --block 48,64 was not trained (16, 32 were): expect worse"),
        ("mdlm", (16, "full"), ""),
        ("mdlm", (), ""),
        ("ar", (48,), ""),
        ("tidar", (3,), ""),
    ],
)
def test_a_block_size_that_was_not_trained_is_told(family, blocks, said):
    note = untrained_blocks(SimpleNamespace(family=family, block_sizes=(16, 32)), blocks)
    assert note.startswith(said)
    assert bool(note) == bool(said)
