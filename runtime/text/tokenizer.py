"""Text to token ids and back, over the `tokenizers` library, offline.

Text of a user never becomes a special token: `<|mask|>` in a prompt is seven ordinary characters or
so, and special ids print nothing. Knows no family and no canvas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as Backend

from ..errors import BundleError, ConfigError, brief

MAX_SPLIT = 3
"""Tokens that the begin of an unfinished UTF-8 character can lie in."""


class Tokenizer:
    """A `tokenizer.json`, read once."""

    def __init__(self, text: str, *, origin: str = "tokenizer.json") -> None:
        try:
            self._backend = Backend.from_str(text)
        except Exception as error:  # the library raises no narrower class
            reason = brief(error, 80)
            raise BundleError(
                f"{origin} is no tokenizer that the tokenizers library reads ({reason}): "
                "export the bundle again or update tokenizers"
            ) from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._size = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        """Ids that print nothing."""
        self._special = {token.content: number for number, token in added.items() if token.special}
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._by_name = re.compile(f"({'|'.join(names)})")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`; raises BundleError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"cannot read the tokenizer {path}: {error}") from error
        return cls(text, origin=str(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._size

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token by its name in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def missing_ids(self, vocab_size: int) -> tuple[int, ...]:
        """Returns the ids below `vocab_size` that no token has: a model may have spare rows."""
        if self._size == vocab_size:
            return ()
        known = self._backend.get_vocab(with_added_tokens=True).values()
        return tuple(sorted(set(range(vocab_size)).difference(known)))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; no special token is added, none is recognised."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:  # which one depends on the version
            raise ConfigError(
                "the text holds half a character (a lone surrogate): pass it as UTF-8"
            ) from error

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Returns the ids of pieces of text that follow each other.

        Args:
            pieces: Text, and whether names of special tokens in it mean these tokens.
                What lies between two special tokens is encoded as one, whatever it is pieced from.
        """
        ids: list[int] = []
        plain = ""
        for text, marked in pieces:
            for part in self._by_name.split(text) if marked and self._special else (text,):
                if marked and part in self._special:
                    ids += [*self.encode(plain), self._special[part]]
                    plain = ""
                else:
                    plain += part
        return ids + self.encode(plain)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special ids print nothing, broken UTF-8 prints U+FFFD."""
        listed = [int(token) for token in ids]
        for token in listed:
            # Ids may have holes, so that the largest is not the number of tokens.
            if token < 0 or self._backend.id_to_token(token) is None:
                raise ConfigError(f"token {token} is not in the vocabulary")
        return self._backend.decode(listed, skip_special_tokens=True)

    def stream(self) -> TextStream:
        """Returns a decoder to be fed ids piece by piece."""
        return TextStream(self)


class TextStream:
    """Ids in, text out, never half a UTF-8 character; `push` pieces and `flush` add up to decode.

    A token is decoded together with the ones just before it, because the first token of a text may
    print differently (a leading space, a joined accent) than the same token inside it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = 0  # first id of the last printed piece
        self._printed = 0  # first id not yet printed

    def push(self, ids: Iterable[int]) -> str:
        """Adds ids; returns the text that is now certain."""
        text = ""
        for token in ids:
            # Special ones may be inside a split character, and must not count as held back.
            if int(token) not in self._tokenizer.special_ids:
                self._ids.append(int(token))
                text += self._advance(final=False)
        return text

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        end = len(self._ids)
        old = self._tokenizer.decode(self._ids[self._before : self._printed])
        new = self._tokenizer.decode(self._ids[self._before :])
        if new.endswith("\ufffd") and not final:
            end, new = self._certain(new)
        if end == self._printed or (len(new) <= len(old) and not final):
            return ""
        self._before, self._printed = self._printed, end
        return new[len(old) :]

    def _certain(self, text: str) -> tuple[int, str]:
        """Cuts the ids that may be the begin of a character off a text that ends in U+FFFD.

        Returns:
            The number of ids before the cut, and their text from `_before` on.
        """
        count = len(self._ids)
        for cut in range(count - 1, max(self._printed, count - MAX_SPLIT - 1), -1):
            kept = self._tokenizer.decode(self._ids[self._before : cut])
            if kept + self._tokenizer.decode(self._ids[cut:]) == text:
                return cut, kept
        return self._printed, ""
