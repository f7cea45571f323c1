"""The lowest versions that pyproject.toml allows: installed together, and put to use.

Downloads some hundred MiB, with `desktop` some GiB; run it weekly with `make floors`.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD

tomllib = pytest.importorskip("tomllib")
pytestmark = pytest.mark.floors
ROOT = Path(__file__).resolve().parents[2]
STORIES = "\n<|endoftext|>\n".join(
    f"The dog number {i} saw a cat and ran home." for i in range(300)
)
SHAPE = (
    *("--dim", "32", "--layers", "1", "--heads", "1", "--context", "32", "--vocab-size", "300"),
    *("--batch-size", "2", "--eval-rows", "2", "--max-steps", "2", "--block-size", "8,full"),
)


def lowest(*extras: str) -> list[str]:
    """Returns `name==version` for what the package and some of its extras need at least."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"]]
    for extra in extras:
        wanted = project["optional-dependencies"][extra]
        listed += [one for one in wanted if not one.startswith("dlm-edge[")]
    found = [re.fullmatch(r"([\w-]+)>=([\w.]+)", one) for one in listed]
    assert all(found), listed
    return [f"{one[1]}=={one[2]}" for one in found if one is not None]


class Environment:
    """A virtual environment whose interpreter runs this checkout's commands."""

    def __init__(self, folder: Path, *extras: str) -> None:
        # Python 3.10 is the floor of Python itself.
        interpreter = shutil.which("python3.10")
        if (
            interpreter is None
            or subprocess.run([interpreter, "-V"], capture_output=True).returncode
        ):
            interpreter = sys.executable
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        self._python = folder / "bin" / "python"
        install = [self._python, "-m", "pip", "install", "--quiet", *lowest(*extras)]
        subprocess.run(install, check=True)

    def run(self, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        program = f"{LOAD}\nfrom dlm_edge.{module} import main; main()"
        command = [self._python, "-c", program, ROOT, *arguments]
        return subprocess.run([*map(str, command)], capture_output=True, text=True)

    def succeed(self, module: str, *arguments: object) -> str:
        result = self.run(module, *arguments)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("device") / "venv", "cpu")


def test_the_shipped_model_writes_and_gives_its_golden_vectors(device):
    made = json.loads(device.succeed("runtime.cli.run", "Once upon", "--max-tokens", 8, "--json"))
    assert len(made["token_ids"]) == 8
    device.succeed("runtime.cli.run", "--check")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--temprature", "1"], 2), (["--max-tokens", "x"], 2), (["none.dlm"], 1), (["a", "b"], 2)],
)
def test_an_error_is_one_line_and_its_status(device, arguments, status):
    result = device.run("runtime.cli.run", *arguments)
    assert result.returncode == status
    assert result.stderr.startswith("dlm-run: error: ")
    assert result.stderr.count("\n") == 1


def test_an_evaluation_and_a_profile_run(device, tmp_path):
    (tmp_path / "a.txt").write_text(STORIES[:2000], "utf-8")
    (model,) = (ROOT / "runtime" / "models").glob("*.dlm")
    found = device.succeed("runtime.cli.eval", model, "--data", tmp_path / "a.txt", "--json")
    assert json.loads(found)["num_tokens"] > 100
    assert "--help" in device.succeed("jetson.cli.profile", "--help")


def test_a_desktop_trains_exports_and_runs(tmp_path):
    desktop = Environment(tmp_path / "venv", "cpu", "export", "desktop")
    (tmp_path / "a.txt").write_text(STORIES, "utf-8")
    program = (
        "import pyarrow, pyarrow.parquet as p, sys; "
        "p.write_table(pyarrow.table({'text': open(sys.argv[1]).read().split('<|endoftext|>')}), "
        "sys.argv[2])"
    )
    made = tmp_path / "b.parquet"
    subprocess.run([desktop._python, "-c", program, tmp_path / "a.txt", made], check=True)
    for data in ("a.txt", "b.parquet"):
        out = tmp_path / data.partition(".")[2]
        desktop.succeed("train.cli", "--data", tmp_path / data, *SHAPE, "--out", out)
    bundle = tmp_path / "m.dlm"
    desktop.succeed("export.cli", out, "--block", 8, "--context", 32, "-o", bundle)
    made = json.loads(desktop.succeed("runtime.cli.run", bundle, "The", "--json"))
    assert made["token_ids"]
