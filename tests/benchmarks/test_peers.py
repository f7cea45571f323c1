import numpy as np
import pytest
import torch
from dlm_edge.benchmarks.contestants import EndlessOps
from dlm_edge.benchmarks.peer_weights import PeerModel
from dlm_edge.benchmarks.peers import (
    BlockCache,
    WholeCanvas,
    candidates,
    check_rule,
    select,
    truncate,
)
from dlm_edge.runtime.decoding import DecodingRule
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.mdlm.rules import Factor, Threshold
from dlm_edge.runtime.ops.rows.contract import Sampling
from dlm_edge.runtime.ops.unmask import UNMASK, selection
from dlm_edge.runtime.ops.unmask.contract import UnmaskSpec
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.transformer import Transformer
from rules import decoding

VOCAB, EOS, MASK, CONTEXT, BLOCK = 50, 0, 1, 32, 8


@pytest.fixture(scope="module")
def peer() -> PeerModel:
    torch.manual_seed(0)
    options = {"dim": 32, "num_layers": 2, "num_heads": 2, "context": CONTEXT, "vocab_size": VOCAB}
    ids = {"eos_token_id": EOS, "mask_token_id": MASK, "pad_token_id": None}
    config = FAMILIES["mdlm"].make_config({**options, **ids, "block_sizes": "8,full"})
    model = FAMILIES["mdlm"].make_model(config["model"])
    assert isinstance(model, Transformer)
    for parameter in model.parameters():  # spread the logits, so that rules have work to do
        parameter.data *= 4.0 if parameter.ndim == 2 else 1.0
    return PeerModel(
        model=model.eval(),
        mask_token_id=MASK,
        eos_token_id=EOS,
        banned=(EOS, MASK),
        block_sizes=(8, 32),
        context=CONTEXT,
    )


def reference_decode(peer: PeerModel, num_tokens: int, settings: DecodingRule) -> list[int]:
    """Block by block without a cache, under a block-causal mask, with the runtime's selection."""
    text = [EOS]
    while len(text) <= num_tokens:
        start = (len(text) - 1) // BLOCK * BLOCK if len(text) % BLOCK else len(text)
        ids = np.full(start + BLOCK, MASK)
        ids[: len(text)] = text
        stop = min(start + BLOCK, num_tokens + 1)
        block = torch.arange(len(ids)) // BLOCK
        mask = block[:, None] >= block[None, :]
        while len(masked := np.flatnonzero(ids[:stop] == MASK)):
            with torch.no_grad():
                canvas, positions = torch.from_numpy(ids)[None], torch.arange(len(ids))
                logits = peer.model(canvas, positions, mask)[0, masked]
            logits[:, list(peer.banned)] = -torch.inf
            score, token = logits.softmax(-1).max(-1)
            if isinstance(settings, Threshold):
                accept = selection.threshold(score.numpy(), settings.threshold)
            else:
                assert isinstance(settings, Factor)
                accept = selection.factor(score.numpy(), settings.factor)
            ids[masked[accept]] = token.numpy()[accept]
        text = ids[:stop].tolist()
    return text[1:]


@pytest.mark.parametrize("settings", [{"rule": "threshold", "threshold": 0.5}, {"rule": "factor"}])
@pytest.mark.parametrize("num_tokens", [31, 20])
def test_block_cache_gives_the_tokens_of_decoding_without_a_cache(
    peer: PeerModel, settings: dict, num_tokens: int
) -> None:
    resolved = decoding(**settings)
    decoded = BlockCache(peer, num_tokens, BLOCK).decode(resolved, 0)
    assert decoded.token_ids == reference_decode(peer, num_tokens, resolved)
    assert decoded.nfe < num_tokens + 4


def test_whole_canvas_takes_its_steps_and_fills_every_position(peer: PeerModel) -> None:
    settings = decoding(rule="low_confidence", steps=16, temperature=1.0)
    decoder = WholeCanvas(peer, 31, compiled=False)
    decoded = decoder.decode(settings, 3)
    assert decoded.nfe == 16
    assert len(decoded.token_ids) == 31
    assert not {EOS, MASK} & set(decoded.token_ids)
    assert decoder.decode(settings, 3) == decoded
    assert decoder.decode(settings, 4) != decoded


@pytest.mark.parametrize("rule", ["threshold", "factor", "entropy_bound", "low_confidence"])
def test_peers_commit_what_the_runtime_would(rule: str) -> None:
    rng = np.random.default_rng(0)
    settings = decoding(rule=rule, steps=4 if rule == "low_confidence" else None)
    rule_selection = settings.selection
    assert rule_selection is not None
    for count in (1, 2, 7, 19):
        score = rng.uniform(0.3, 1.0, count).astype(np.float32)
        if rule == "entropy_bound":
            score = -rng.uniform(0.0, 0.1, count).astype(np.float32)
        wanted = {
            "threshold": lambda s=score: selection.threshold(s, rule_selection.limit),
            "factor": lambda s=score: selection.factor(s, rule_selection.limit),
            "entropy_bound": lambda s=score: selection.entropy_bound(s, rule_selection.limit),
            "low_confidence": lambda s=score: selection.highest(s, selection.quota(len(s), 4, 0)),
        }[rule]()
        found = select(torch.from_numpy(score), rule_selection, count, 0)
        assert sorted(found.tolist()) == np.flatnonzero(wanted).tolist()


def test_truncation_keeps_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = truncate(logits, Sampling(temperature=1.0, top_p=0.7)).isfinite()
    assert kept.tolist() == [[True, True, False, False]]
    kept = truncate(logits, Sampling(temperature=1.0, top_k=1)).isfinite()
    assert kept.tolist() == [[True, False, False, False]]


def test_confidence_is_measured_before_the_temperature() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    token, score = candidates(logits, decoding(temperature=0.5), generator)
    assert score[0] == logits.softmax(-1)[0, token[0]]


def test_rules_that_the_peers_lack_are_refused() -> None:
    with pytest.raises(ConfigError, match="first_hitting"):
        check_rule(decoding(rule="first_hitting"))


def test_endless_ops_ban_the_end_of_text() -> None:
    spec = UnmaskSpec(
        block=4,
        vocab_size=8,
        sampling=decoding().sampling,
        selection=decoding().selection,
        seed=0,
        sample_index=0,
        mask_token_id=1,
        end_ids=(0,),
        banned=(1,),
    )
    endless = EndlessOps().bind(UNMASK).canvas(spec).spec
    assert endless.banned == (0, 1)
    assert endless.end_ids == ()
