"""The judge's tokenizer: llama2.c's `tokenizer.bin` and its byte-pair encoding.

The file is an int32 (longest piece), then per piece its float32 score, int32 length and bytes.
"""

from __future__ import annotations

import heapq
import re
import struct
from pathlib import Path

from ...runtime.errors import DataError

BYTE_OFFSET = 3
"""Id of byte 0 where a character is not in the vocabulary."""


class JudgeTokenizer:
    """llama2.c's BPE: characters, merged pair by pair in the order of the pieces' scores."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Reads a tokenizer.bin; DataError if it is missing, truncated or too long."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"judge tokenizer {path}: {error.strerror}; pass --judge-tokenizer"
            ) from error
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        offset = 4  # the longest piece's length, which only a C buffer needs
        for _ in range(vocab_size):
            if offset + 8 > len(data):
                break
            score, length = struct.unpack_from("<fi", data, offset)
            self.scores.append(score)
            self.pieces.append(data[offset + 8 : offset + 8 + max(length, 0)])
            offset += 8 + max(length, 0)
        if len(self.pieces) != vocab_size or offset != len(data):
            raise DataError(f"{path}: wanted a tokenizer of exactly {vocab_size} pieces")
        self._ids: dict[bytes, int] = {}
        for index, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, index)
        # Where a space only ever starts a piece (or fills it), no merge crosses the start of a
        # word, so words are encoded alone and remembered.
        self._by_word = all(b" " not in piece.lstrip(b" ") for piece in self.pieces)
        self._memory: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encodes a text behind the dummy space that llama2.c puts first, without BOS."""
        if not text:
            return []
        if not self._by_word:
            return self._merge(" " + text)
        ids: list[int] = []
        for word in re.findall(r" *[^ ]+| +", " " + text):
            if word not in self._memory:
                self._memory[word] = self._merge(word)
            ids += self._memory[word]
        return ids

    def _merge(self, text: str) -> list[int]:
        """Merges the neighbours with the best score, the leftmost of equals first."""
        ids: list[int] = []
        for character in text:
            raw = character.encode("utf-8", errors="surrogatepass")
            known = self._ids.get(raw)
            ids += [known] if known is not None else [byte + BYTE_OFFSET for byte in raw]
        # A linked list and a heap: n log n, where llama2.c's scan is quadratic.
        following = [*range(1, len(ids)), -1] if ids else []
        preceding = list(range(-1, len(ids) - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            right = following[left] if left >= 0 else -1
            if right >= 0:
                merged = self._ids.get(self.pieces[ids[left]] + self.pieces[ids[right]])
                if merged is not None:
                    entry = (-self.scores[merged], left, ids[left], ids[right], merged)
                    heapq.heappush(heap, entry)

        for left in range(len(ids)):
            offer(left)
        while heap:
            _, left, left_id, right_id, merged = heapq.heappop(heap)
            right = following[left]
            if right < 0 or ids[left] != left_id or ids[right] != right_id:
                continue  # one of the two was merged away since
            ids[left], ids[right] = merged, -1
            following[left] = following[right]
            following[right] = -1
            if following[left] >= 0:
                preceding[following[left]] = left
            offer(left)
            offer(preceding[left])
        return [token for token in ids if token >= 0]
