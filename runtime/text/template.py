"""Templates with gaps: fixed text that stays byte for byte, and masks where text is to be written.

A gap is a run of three or more underscores: `Once upon a time ___ and they were happy.` A backslash
before such a run makes it plain underscores (`\\___`), two make a backslash and a gap. Each fixed
piece is tokenised by itself, so that nothing a gap holds can change its tokens. One space before a
gap belongs to the gap's first token, as in the text the model has learnt from; it is put back
when the text is assembled, unless the gap begins with punctuation. Knows no family and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..bundle.manifest import Manifest
from ..errors import ConfigError
from .tokenizer import Tokenizer

DEFAULT_GAP_TOKENS = 12
"""Tokens per gap when the caller does not say: about nine English words."""

_NO_SPACE_BEFORE = tuple(",.;:!?)]}…")
"""What a word is followed by without a space."""
_GAP = re.compile(r"(\\*)(_{3,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Fixed pieces with a gap between each two neighbours."""

    pieces: tuple[str, ...]
    """One more than there are gaps; the first and the last may be empty."""

    @property
    def num_gaps(self) -> int:
        """Gaps to fill."""
        return len(self.pieces) - 1

    def assemble(self, gaps: Sequence[str]) -> str:
        """Returns the whole text: every piece as it was given, `gaps` between them.

        Of the space before a gap and a space that the gap begins with, one is kept; none is before
        punctuation.
        """
        text = self.pieces[0]
        for gap, piece in zip(gaps, self.pieces[1:], strict=True):
            if text.endswith(" "):
                gap = gap.removeprefix(" ")
                if gap.startswith(_NO_SPACE_BEFORE):
                    text = text.removesuffix(" ")
            text += gap + piece
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateCanvas:
    """A template in token ids."""

    ids: tuple[int, ...]
    """Start tokens, then pieces and gaps (mask ids)."""
    gaps: tuple[slice, ...]
    """Where in `ids` each gap lies."""


def parse_template(text: str) -> Template:
    """Splits a template at its gaps; raises ConfigError."""
    pieces = [""]
    end = 0
    for match in _GAP.finditer(text):
        backslashes, underscores = len(match[1]), match[2]
        pieces[-1] += text[end : match.start()] + "\\" * (backslashes // 2)
        if backslashes % 2:
            pieces[-1] += underscores
        else:
            pieces.append("")
        end = match.end()
    pieces[-1] += text[end:]
    if len(pieces) == 1:
        raise ConfigError(
            "the text to infill has no gap; mark each with ___ (three or more underscores)"
        )
    return Template(pieces=tuple(pieces))


def gap_lengths(template: Template, gap_tokens: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the tokens of each gap: one number counts for all gaps, else one for each.

    Raises:
        ConfigError: the number of lengths fits neither, or a length is below 1.
    """
    gap_tokens = [gap_tokens] if isinstance(gap_tokens, int) else gap_tokens
    if min(gap_tokens, default=0) < 1:
        raise ConfigError(f"gap tokens must be 1 or more for each gap, found {list(gap_tokens)}")
    if len(gap_tokens) == 1:
        return (gap_tokens[0],) * template.num_gaps
    if len(gap_tokens) != template.num_gaps:
        raise ConfigError(
            f"gap tokens name {len(gap_tokens)} lengths for {template.num_gaps} gaps; "
            "give one length for all gaps or one for each"
        )
    return tuple(gap_tokens)


def lay_out(
    template: Template,
    lengths: Sequence[int],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    *,
    start_ids: Sequence[int],
    mask_token_id: int,
) -> TemplateCanvas:
    """Tokenises the pieces and puts masks between them; raises ConfigError."""
    ids, gaps = list(start_ids), []
    for index, piece in enumerate(template.pieces):
        fixed = piece.removesuffix(" ") if index < template.num_gaps else piece
        piece_ids = encode(fixed)
        if decode(piece_ids) != fixed:
            raise ConfigError(
                f"the fixed text {fixed[:40]!r} cannot be kept byte for byte: this bundle's "
                f"tokenizer gives {decode(piece_ids)[:40]!r} back; change that text"
            )
        ids.extend(piece_ids)
        if index < template.num_gaps:
            gaps.append(slice(len(ids), len(ids) + lengths[index]))
            ids.extend([mask_token_id] * lengths[index])
    return TemplateCanvas(ids=tuple(ids), gaps=tuple(gaps))


def open_template(
    text: str | Template, gap_tokens: int | Sequence[int], manifest: Manifest, tokenizer: Tokenizer
) -> tuple[Template, TemplateCanvas]:
    """Lays a template out for a bundle, and reads it first if it is a text.

    Raises:
        ConfigError: As the steps, and for a model that cannot infill.
    """
    mask_token_id = manifest.mask_token_id
    if mask_token_id is None:
        raise ConfigError(
            f"this bundle's family {manifest.family} cannot infill: it has no mask token; "
            "use a bundle of a family that has one"
        )
    template = parse_template(text) if isinstance(text, str) else text
    lengths = gap_lengths(template, gap_tokens)
    special = {"start_ids": manifest.framing.start_ids, "mask_token_id": mask_token_id}
    return template, lay_out(template, lengths, tokenizer.encode, tokenizer.decode, **special)
