"""Every command, link and folder that README.md and CONTRIBUTING.md name, against the checkout."""

import ast
import configparser
import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text("utf-8")) if kind in languages]


def commands() -> list[str]:
    """One shell line each, comments gone and continuations joined."""
    lines = []
    for page in PAGES:
        for body in blocks(page, "bash", "sh", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                if shlex.split(line, comments=True):
                    lines.append(line)
    return lines


def parse_with_click(script: str, arguments: list[str]) -> None:
    """Raises click's UsageError where an option, choice or number is not as the command has it."""
    module, attribute = PROJECT["scripts"][script].split(":")
    command = getattr(importlib.import_module(module), attribute)
    if isinstance(command, click.Group) and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    assert isinstance(command, click.Command)
    context = click.Context(command, info_name=script)
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    assert not rest, f"{script} takes no {rest}"
    for parameter in command.params:
        value = values.get(parameter.name)
        # A file that a reader brings is not here; everything else can be converted.
        if isinstance(value, str) and not isinstance(parameter.type, (click.Path, click.File)):
            parameter.type.convert(value, parameter, context)


def check_pip(arguments: list[str]) -> None:
    if arguments[0] == "download":
        return
    assert arguments[0] == "install"
    for requirement in arguments[1:]:
        for extra in re.findall(r"^\.\[(.*)\]$", requirement):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"])


def check_setup(arguments: list[str]) -> None:
    script = ROOT / "jetson" / Path(arguments[0]).name
    usage = script.read_text("utf-8").split("TEXT")[1]
    for argument in arguments[1:]:
        assert not argument.startswith("-") or f"  {argument}" in usage


def check_make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for argument in arguments:
        assert "=" in argument or argument in targets


def check(line: str) -> None:
    words = shlex.split(line, comments=True)
    if "|" in words:
        words = words[words.index("|") + 1 :]  # what comes before only prints
    while "=" in words[0]:  # variables of one command
        words.pop(0)
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    match program:
        case "make":
            check_make(arguments)
        case "pip":
            check_pip(arguments)
        case "git" | "cd" | "cp" | "curl" | "scp" | "source" | "sudo" | "pre-commit":
            pass
        case "bash":
            check_setup(arguments)
        case _ if program in PROJECT["scripts"]:
            parse_with_click(program, arguments)
        case _:
            pytest.fail(f"nothing here knows how to check {line!r}")


@pytest.mark.parametrize("line", commands())
def test_command_in_the_documents_is_one_that_exists(line):
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "make nonsense",
        "pip install '.[nonsense]'",
        "nonsense --help",
        "bash setup.sh --nonsense",
        "bash nonsense.sh",
    ],
)
def test_the_check_rejects_what_does_not_exist(line):
    with pytest.raises((AssertionError, OSError, pytest.fail.Exception)):
        check(line)


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_the_check_rejects_an_unknown_option(script):
    with pytest.raises(click.NoSuchOption):
        check(f"{script} --no-such-option")


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_every_command_is_shown_in_the_readme(script):
    shown = {shlex.split(line)[0] for line in commands()}
    assert script in shown


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_every_command_has_the_options_all_share(script):
    module, attribute = PROJECT["scripts"][script].split(":")
    command = getattr(importlib.import_module(module), attribute)
    is_group = isinstance(command, click.Group)  # nothing is drawn in it
    for part in command.commands.values() if is_group else [command]:
        options = {option for parameter in part.params for option in parameter.opts}
        assert {"--json", "--debug", "-v", *([] if is_group else ["--seed"])} <= options


@pytest.mark.parametrize("body", blocks(ROOT / "docs" / "board.md", "ini"))
def test_systemd_units_parse_and_start_a_command_that_exists(body):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(body)
    assert "WantedBy" in unit["Install"]
    if "Service" in unit:
        program, *arguments = shlex.split(unit["Service"]["ExecStart"])
        parse_with_click(Path(program).name, arguments)


@pytest.mark.parametrize("body", blocks(ROOT / "README.md", "python"))
def test_python_in_the_readme_uses_names_that_exist(body):
    tree = ast.parse(body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not target.startswith(("https://", "http://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def tree_paths() -> list[str]:
    """Folders and files of the annotated tree, as paths from the root."""
    (body,) = (b for b in blocks(ROOT / "README.md", "text") if "runtime/" in b)
    paths, parent = [], ""
    for line in body.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            paths.append(parent + name)
        else:
            parent = name
            paths.append(name)
    return paths


def test_the_tree_names_only_what_exists():
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_the_tree_names_every_folder():
    top = (path for path in ROOT.iterdir() if (path / "__init__.py").exists())
    folders = {"tests/", "docs/", *(f"{path.name}/" for path in top)}
    for folder in ("runtime", "train", "jetson", "export", "calibration"):
        found = (p for p in (ROOT / folder).iterdir() if (p / "__init__.py").exists())
        folders |= {f"{folder}/{path.name}/" for path in found}
    assert folders == {path for path in tree_paths() if path.endswith("/")}


def test_every_source_file_that_a_page_names_exists():
    folders = ("benchmarks", "calibration", "export", "jetson", "runtime", "tests", "train")
    there = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for folder in folders
        for path in (ROOT / folder).rglob("*.*")
    ]
    named = {
        (page.name, name)
        for page in PAGES
        if page.name != "CHANGELOG.md"  # which also tells of what is gone
        for name in re.findall(r"`([\w/]+\.(?:py|cu|cuh|hpp|sh))`", page.read_text("utf-8"))
    }
    assert len(named) > 30
    named.discard(("CONTRIBUTING.md", "utils.py"))  # a name that no file may have
    assert [
        item for item in sorted(named) if not any(p.endswith(f"/{item[1]}") for p in there)
    ] == []
