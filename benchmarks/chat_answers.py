"""What bundles of one model answer to the same questions, side by side.

    python -m dlm_edge.benchmarks.chat_answers fp16.dlm int8.dlm int4.dlm

Answers are greedy, each question begins a conversation, and every bundle is compared with the first
one: tokens that are equal until answers part, and the share of positions with equal tokens (answers
that have parted may mean the same, so that this is a lower bound of what is kept).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from .report import out_option, print_table, record, require_names, write_json

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "How many legs does a spider have?",
    "Why is the sky blue?",
    "What do bees make?",
    "Who wrote Romeo and Juliet?",
    "What is the largest ocean?",
    "How do plants get their food?",
    "What is two plus two?",
    "Give me a recipe for pancakes.",
    "What is the opposite of hot?",
    "Which planet is closest to the sun?",
    "What is a verb?",
    "Write a sentence about a cat.",
    "How many days are there in a week?",
    "What is water made of?",
    "Explain what a computer does.",
    "What is the freezing point of water?",
    "Name a fruit that is yellow.",
    "What language is spoken in Brazil?",
    "How can I sleep better?",
    "What is gravity?",
    "Tell me a short story about a dragon.",
    "What is the square root of nine?",
    "Which animals can fly?",
    "What is the tallest mountain on Earth?",
    "Why do we have seasons?",
    "What is democracy?",
    "List three uses of a knife.",
    "How do I boil an egg?",
    "What is the past tense of go?",
    "What do doctors do?",
    "Who painted the Mona Lisa?",
    "What is the speed of light?",
    "Describe the taste of honey.",
    "What is the main ingredient of bread?",
    "How many continents are there?",
    "What is photosynthesis?",
    "Give a synonym of happy.",
    "What should I wear in winter?",
    "How does a bicycle stay upright?",
    "What is the currency of Japan?",
    "Write a greeting for a birthday.",
    "What is a prime number?",
    "Why is reading useful?",
    "Name a river in Africa.",
    "What is the difference between a lake and a sea?",
    "How do birds keep warm?",
    "What is a good name for a dog?",
    "When was the first moon landing?",
)
COLUMNS = (
    ("bundle", "bundle"),
    ("MiB", "mib"),
    ("equal tokens until answers part", "until_parted"),
    ("equal tokens, %", "equal_percent"),
    ("equal answers", "equal_answers"),
)
Ids = Sequence[int]


def answers_of(path: Path, questions: Sequence[str], num_tokens: int) -> list[tuple[Ids, str]]:
    """Returns the ids and the text of a bundle's answer to each question."""
    from ..runtime.chat import Chat
    from ..runtime.pipeline import Pipeline

    found: list[tuple[Ids, str]] = []
    with Pipeline.load(path) as pipeline:
        chat = Chat(pipeline)
        for question in questions:
            chat.restart()
            result = chat.say(question, max_tokens=num_tokens, temperature=0.0).result()
            found.append((result.token_ids, result.text))
    return found


def parted_at(found: Ids, wanted: Ids) -> int:
    """Returns how many tokens are equal from the start on."""
    pairs = zip(found, wanted, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted))
    )


def compared(found: Sequence[Ids], wanted: Sequence[Ids]) -> dict[str, Any]:
    """Compares answers with those of the first bundle."""
    same = sum(a == b for one, other in zip(found, wanted, strict=True)
               for a, b in zip(one, other, strict=False))  # fmt: skip
    total = sum(max(len(one), len(other)) for one, other in zip(found, wanted, strict=True))
    pairs = list(zip(found, wanted, strict=True))
    return {
        "until_parted": mean(parted_at(one, other) for one, other in pairs),
        "equal_percent": 100 * same / max(total, 1),
        "equal_answers": sum(list(one) == list(other) for one, other in pairs),
    }


@click.command("chat_answers", cls=DlmCommand)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--num", type=click.IntRange(1, len(QUESTIONS)), default=len(QUESTIONS))
@click.option("--tokens", type=click.IntRange(min=1), default=32, help="Of an answer, at most.")
@out_option("chat_answers")
def main(bundles: tuple[Path, ...], num: int, tokens: int, out: Path) -> None:
    """Asks BUNDLES of one model the same questions and compares their answers with the first's."""
    require_names(bundles)
    circumstances = record()
    questions = QUESTIONS[:num]
    answers: dict[str, list[tuple[Ids, str]]] = {}
    rows: list[Mapping[str, Any]] = []
    for path in bundles:
        click.echo(f"asking {path.name}", err=True)
        answers[path.name] = answers_of(path, questions, tokens)
        ids = [item[0] for item in answers[path.name]]
        first = [item[0] for item in answers[bundles[0].name]]
        size = path.stat().st_size / 2**20
        rows.append({"bundle": path.name, "mib": size, **compared(ids, first)})
    print_table(COLUMNS, rows)
    side_by_side = [
        {"question": question, **{name: found[number][1] for name, found in answers.items()}}
        for number, question in enumerate(questions)
    ]
    write_json(out, {**circumstances, "tokens": tokens, "rows": rows, "answers": side_by_side})


if __name__ == "__main__":
    main()
