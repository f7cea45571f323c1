import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlm_edge.calibration.losses.judge import Judge, JudgeModel, perplexity
from dlm_edge.calibration.losses.judge_tokenizer import JudgeTokenizer
from dlm_edge.runtime.errors import DataError

LAYERS, DIM, HIDDEN, HEADS, KV_HEADS, SEQ = 2, 16, 24, 4, 2, 24
SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
LETTERS = [b" ", b"a", b"b", b"c", b"\n", "é".encode()]
MERGES = [(b"ab", -1.0), (b"bc", -2.0), (b" a", -3.0), (b"abc", -4.0), (b" ab", -5.0)]
MERGES += [(b"aa", -2.0), (b" aa", -6.0), (b"aaa", -7.0), (b"  ", -8.0)]


def write_tokenizer(path: Path, extra: list[tuple[bytes, float]] | None = None) -> int:
    pieces = [(piece, 0.0) for piece in SPECIAL]
    pieces += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    pieces += [(piece, -1e6 - i) for i, piece in enumerate(LETTERS)] + MERGES + (extra or [])
    data = struct.pack("<i", max(len(piece) for piece, _ in pieces))
    for piece, score in pieces:
        data += struct.pack("<fi", score, len(piece)) + piece
    path.write_bytes(data)
    return len(pieces)


def write_model(path: Path, vocab: int, *, tied: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    kv_dim, half = DIM // HEADS * KV_HEADS, DIM // HEADS // 2
    shapes = {
        "embedding": (vocab, DIM),
        "attention_norm": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, kv_dim, DIM),
        "wv": (LAYERS, kv_dim, DIM),
        "wo": (LAYERS, DIM, DIM),
        "ffn_norm": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "final_norm": (DIM,),
        "freqs": (2, SEQ, half),
    }
    if not tied:
        shapes["head"] = (vocab, DIM)
    weights = {k: 0.4 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    header = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocab if tied else -vocab, SEQ)
    body = b"".join(weight.numpy().tobytes() for weight in weights.values())
    path.write_bytes(struct.pack("<7i", *header) + body)
    return weights


def reference_logits(weights: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Complex rotation, one position at a time: as far from the code under test as it goes."""
    size, length = DIM // HEADS, len(ids)
    angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(length, -1, size // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(2)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (DIM,), weight, 1e-5)

    x = weights["embedding"][torch.tensor(ids)]
    for i in range(LAYERS):
        h = norm(x, weights["attention_norm"][i])
        q = rotated((h @ weights["wq"][i].T).view(length, HEADS, size))
        k = rotated((h @ weights["wk"][i].T).view(length, KV_HEADS, size))
        v = (h @ weights["wv"][i].T).view(length, KV_HEADS, size)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + seen.transpose(0, 1).reshape(length, DIM) @ weights["wo"][i].T
        h = norm(x, weights["ffn_norm"][i])
        gated = F.silu(h @ weights["w1"][i].T) * (h @ weights["w3"][i].T)
        x = x + gated @ weights["w2"][i].T
    return norm(x, weights["final_norm"]) @ weights.get("head", weights["embedding"]).T


def reference_encode(tokenizer: JudgeTokenizer, text: str) -> list[int]:
    """The quadratic scan of llama2.c's run.c."""
    index = {}
    for i, piece in enumerate(tokenizer.pieces):
        index.setdefault(piece, i)
    ids = []
    for character in " " + text:
        raw = character.encode()
        ids += [index[raw]] if raw in index else [byte + 3 for byte in raw]
    while True:
        best, where, merged = -1e10, -1, -1
        for i in range(len(ids) - 1):
            found = index.get(tokenizer.pieces[ids[i]] + tokenizer.pieces[ids[i + 1]])
            if found is not None and tokenizer.scores[found] > best:
                best, where, merged = tokenizer.scores[found], i, found
        if where < 0:
            return ids
        ids[where : where + 2] = [merged]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tok.bin")
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_an_independent_forward(tmp_path: Path, tied: bool) -> None:
    weights = write_model(tmp_path / "m.bin", 40, tied=tied)
    ids = np.random.default_rng(0).integers(0, 40, (3, 11))
    found = JudgeModel(tmp_path / "m.bin").logits(ids)
    for row in range(3):
        wanted = reference_logits(weights, ids[row].tolist()).numpy()
        np.testing.assert_allclose(found[row], wanted, rtol=2e-4, atol=2e-4)


def test_encoding_merges_as_llama2_c_does(tmp_path: Path) -> None:
    by_word = JudgeTokenizer(tmp_path / "tok.bin", write_tokenizer(tmp_path / "tok.bin"))
    across = [(b"a b", -0.5), (b"c ", -0.7)]
    scanning = JudgeTokenizer(tmp_path / "x.bin", write_tokenizer(tmp_path / "x.bin", across))
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(rng.choice(list("aabc  \né€"), size=rng.integers(1, 20)))
        for tokenizer in (by_word, scanning):
            assert tokenizer.encode(text) == reference_encode(tokenizer, text), text


def test_encoding_puts_a_space_first_and_spells_unknown_characters_in_bytes(folder: Path) -> None:
    tokenizer = JudgeTokenizer(folder / "tok.bin", write_tokenizer(folder / "tok.bin"))
    pieces = [tokenizer.pieces[i] for i in tokenizer.encode("ab")]
    assert pieces == [b" ab"]
    assert tokenizer.encode("€")[1:] == [byte + 3 for byte in "€".encode()]
    assert tokenizer.encode("") == []


def test_perplexity_scores_every_token_but_bos_once_per_window(tmp_path: Path) -> None:
    vocab = write_tokenizer(tmp_path / "tok.bin")
    weights = write_model(tmp_path / "m.bin", vocab, tied=True)
    judge = Judge(tmp_path / "m.bin", tmp_path / "tok.bin")
    texts = ["abc aab b", "c" * 60, "", "a"]
    nats, count = 0.0, 0
    for text in texts:
        ids = judge.tokenizer.encode(text)
        for start in range(0, len(ids), SEQ - 1):
            piece = ids[start : start + SEQ - 1]
            log_probs = reference_logits(weights, [1, *piece[:-1]]).log_softmax(-1)
            nats -= sum(float(log_probs[i, token]) for i, token in enumerate(piece))
            count += len(piece)
    scores = judge.score(texts)
    assert [score.num_tokens for score in scores][2:] == [0, len(judge.tokenizer.encode("a"))]
    assert sum(score.num_tokens for score in scores) == count
    assert perplexity(scores) == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_a_text_scores_the_same_alone_and_in_company(tmp_path: Path) -> None:
    write_model(tmp_path / "m.bin", write_tokenizer(tmp_path / "tok.bin"), tied=False)
    judge = Judge(tmp_path / "m.bin", tmp_path / "tok.bin")
    together = judge.score(["abc", "aaa b c a b a a", "b c " * 20])
    assert judge.score(["abc"])[0].nats == pytest.approx(together[0].nats, rel=1e-5)


@pytest.mark.parametrize("cut", [0, 20, 500])
def test_truncated_files_are_refused_in_one_line(tmp_path: Path, cut: int) -> None:
    vocab = write_tokenizer(tmp_path / f"tok{0}.bin")
    write_model(tmp_path / "m.bin", vocab, tied=True)
    for name in ("m.bin", "tok0.bin"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="wanted"):
        JudgeModel(tmp_path / "m.bin")
    with pytest.raises(DataError, match="wanted"):
        JudgeTokenizer(tmp_path / "tok0.bin", vocab)


def test_a_missing_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.bin"):
        Judge(tmp_path / "none.bin")
