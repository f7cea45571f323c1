"""TiDAR's loop: equal to causal decoding of the same weights, whatever the drafts are worth."""

import numpy as np
import pytest
from dlm_edge.runtime.decoding import DecodingSettings
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.generate import Generation, generate
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from draft_engines import DraftEngines, Model, draft_manifest

PROMPT = (0, 3, 1, 4, 1)


def request(rule="draft_verify", *, block=None, heat=0.0, beta=None, **fields):
    settings = {"rule": rule, "temperature": heat}
    if rule == "draft_verify":
        settings |= {"block_size": block, "beta": beta}
    for name in ("top_k", "top_p"):
        settings[name] = fields.pop(name, None)
    base = {"prompt_ids": PROMPT, "max_tokens": 24, "seed": 5, "sample_index": 1}
    return Request(**{**base, **fields}, settings=DecodingSettings(**settings))


def run(engines, asked, **fields):
    return generate(draft_manifest(engines, **fields), engines, NumpyOps(), asked)


def observed(engines, asked, **fields):
    """The result, and every graph run."""
    runs = []
    generation = Generation(
        draft_manifest(engines, **fields), engines, NumpyOps(), asked, observer=runs.append
    )
    for _ in generation:
        pass
    return generation.result, runs


def causal_text(model, prompt, max_tokens, *, banned=(), stops=(0,)):
    """Greedy, from scratch for every token: (ids, whether it ended)."""
    text = list(prompt)
    while len(text) < len(prompt) + max_tokens:
        row = model.next_row(text)
        row[[model.vocab - 1, model.vocab - 2, *banned]] = -np.inf
        token = int(row.argmax())
        if token in stops:
            return text, True
        text.append(token)
    return text, False


def random_case(number):
    rng = np.random.default_rng(number)
    vocab = int(rng.integers(6, 40))
    model = Model(vocab, seed=number, agreement=float(rng.choice([0.5, 2.0, 6.0])))
    prompt = (0, *rng.integers(1, vocab - 2, size=rng.integers(0, 30)).tolist())
    block = int(rng.choice([1, 2, 3, 4, 5]))
    return model, prompt, block, bool(rng.integers(2))


@pytest.mark.parametrize("batch", range(7))
def test_greedy_texts_are_those_of_causal_decoding_of_the_same_weights(batch):
    tokens = steps = 0
    for number in range(30 * batch, 30 * batch + 30):
        model, prompt, block, split = random_case(number)
        expected, ended = causal_text(model, prompt, 24)
        found, runs = observed(
            DraftEngines(model, [block], split=split), request(prompt_ids=prompt)
        )
        baseline = run(
            DraftEngines(model, [block], split=split), request("next_token", prompt_ids=prompt)
        )
        for result in (found, baseline):
            assert list(result.token_ids) == expected
            assert result.finish_reason == ("end" if ended else "length")
        steps += sum(one.phase == "verify" for one in runs)
        tokens += len(found.new_token_ids)
    assert tokens > 1.4 * steps  # where no draft is ever kept, nothing would be proved
