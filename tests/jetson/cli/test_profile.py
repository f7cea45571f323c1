import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD
from click.testing import CliRunner
from dlm_edge.jetson.cli import measure as cli_measure
from dlm_edge.jetson.cli import runs as cli_runs
from dlm_edge.jetson.cli.profile import main
from dlm_edge.jetson.cli.runs import write_run
from fake_board import make_board

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["--runs", "1", "--warm-up", "1", "--max-tokens", "8", "--threads", "1", "--no-predict"]
PROGRAM = f"""{LOAD}
import itertools, os, signal
from dlm_edge.jetson.profile import profile
from dlm_edge.jetson.cli.profile import main
text, numbers = profile.timed_text, itertools.count()
def interrupted(*args, **kwargs):
    if next(numbers) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return text(*args, **kwargs)
profile.timed_text = interrupted
main()
"""
"""A profile that is sent Ctrl-C in its sixth text."""


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"
    result = run(*QUICK, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_a_run_prints_a_table_and_writes_json_and_page(report):
    folder, result = report
    assert "tokens/s" in result.stdout
    assert "stage" in result.stdout
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record["complete"]
    assert len(record["runs"]) == 4
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "run.json"]


def test_a_report_that_exists_is_refused_before_anything_is_measured(report):
    folder, _ = report
    before = (folder / "run.json").read_bytes()
    result = run(*QUICK, "--out", folder)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert (folder / "run.json").read_bytes() == before


def test_overwrite_replaces_it(report):
    folder, _ = report
    before = (folder / "run.json").read_bytes()
    assert run(*QUICK, "--out", folder, "--overwrite", "--no-layers").exit_code == 0
    assert (folder / "run.json").read_bytes() != before


def test_the_page_of_an_earlier_run_does_not_stand_beside_a_new_one(tmp_path):
    (tmp_path / "report.html").write_text("of an earlier run")
    write_run({"complete": False}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_json_is_one_object_without_what_only_plots_need():
    result = run(*QUICK, "--json", "--no-layers", "--sensors", "none")
    record = json.loads(result.stdout)
    assert record["summary"]["figures"]["tokens_per_s"]["count"] == 4
    assert "columns" not in record["sensors"]
    assert "steps" not in record["runs"][0]


def test_a_page_is_made_from_json_measured_elsewhere(report, tmp_path):
    folder, _ = report
    result = run("--render", folder / "run.json", "--out", tmp_path / "page")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page" / "report.html").exists()
    assert run("--render", folder / "run.json").exit_code == 2


def test_two_runs_are_compared(report, tmp_path):
    folder, _ = report
    path = folder / "run.json"
    result = run("--compare", path, path, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    assert (tmp_path / "compare.html").exists()
    rows = json.loads(run("--compare", path, path, "--json").stdout)["rows"]
    assert next(row for row in rows if row["quantity"] == "tokens per graph run")["ratio"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--axis", "block=16"], "without --sweep"),
        (["--judge", "x.dlm"], "without --sweep"),
        (["--texts", "4"], "without --sweep"),
        (["--doctor", "--out", "x"], "contradicts"),
        (["--target", "orin-pico"], "orin-nano"),
        (["--target", "orin-nano", "--mode", "60w"], "7w, 15w, 25w, maxn-super"),
        (["--sweep", "--axis", "block=7"], "blocks 16, 32, 256"),
        (["--doctor", "--render", "x"], "contradicts"),
        (["model.dlm", "--doctor"], "contradicts"),
        (["--no-predict", "--target", "orin-nano"], "contradicts"),
        (["--sweep", "--axis", "speed=1"], "--axis wants"),
        (["--rate", "500"], "from 10 to 50"),
        (["--sensors", "magic"], "sysfs, tegrastats, jtop"),
        (["--power-mode", "25W"], "no power modes"),
        (["--threshold", "7"], "threshold must be"),
        (["--runs", "0"], "--runs"),
    ],
)
def test_a_bad_wish_is_one_line_and_exit_2(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/no/such.dlm"], "such.dlm"),
        (["--prompt-file", "/no/prompts"], "/no/prompts"),
        (["--sensors", "tegrastats"], "comes with JetPack"),
        (["--render", "/no/run.json"], "cannot read"),
        (["--sweep", "--judge", "/no/judge.dlm"], "judge.dlm"),
    ],
)
def test_a_missing_thing_is_one_line_and_exit_1(arguments, said, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert said in result.stderr


def test_what_speaks_against_a_run_stands_above_a_comparison(report, tmp_path):
    path = report[0] / "run.json"
    record = json.loads(path.read_text("utf-8"))
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps({**record, "complete": False, "throttling": ["tj was raised"]}))
    said = run("--compare", path, slow).stdout
    assert "slow: THROTTLED: tj was raised" in said
    assert "slow: INTERRUPTED" in said
    _, second = json.loads(run("--compare", path, slow, "--json").stdout)["warnings"]
    assert any(warning.startswith("THROTTLED: tj was raised") for warning in second)


def test_a_full_disk_loses_the_report_but_not_the_table(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli_runs, "write_whole", full)
    result = run(*QUICK, "--no-layers", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "tokens/s" in result.stdout
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("dlm-profile: error: cannot write")
    assert "No space left on device" in error


def test_settings_that_the_bundle_does_not_take_are_one_line():
    result = run(*QUICK, "--block", "7")
    assert result.exit_code == 2
    assert "7" in result.stderr.strip().splitlines()[-1]


def test_an_unknown_target_lists_those_there_are():
    arguments = [a for a in QUICK if a != "--no-predict"]
    result = run(*arguments, "--no-layers", "--target", "orin-pico")
    assert result.exit_code == 2
    assert "orin-nano" in result.stderr


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT), "--out", str(tmp_path / "out")]
    command += ["--runs", "500", "--max-tokens", "8", "--threads", "1", "--warm-up", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 130, done.stderr
    assert "INTERRUPTED: 4 texts" in done.stdout
    record = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert not record["complete"]
    assert len(record["runs"]) == 4


def test_a_power_mode_is_announced_set_and_set_back(tmp_path, monkeypatch, capsys):
    board = make_board(tmp_path)
    monkeypatch.setattr(cli_measure, "ROOT", board)
    asked = []

    def set_mode(root, mode):
        asked.append(mode.name)

    monkeypatch.setattr(cli_measure, "set_mode", set_mode)
    with pytest.raises(ZeroDivisionError), cli_measure._power_mode("maxn_super"):
        raise ZeroDivisionError
    assert asked == ["MAXN_SUPER", "25W"]
    said = capsys.readouterr().err
    assert "setting power mode MAXN_SUPER (now 25W; it is set back afterwards)" in said
    assert "sudo -n nvpmodel -m 2" in said
    assert "setting power mode 25W back: sudo -n nvpmodel -m 1" in said
    with cli_measure._power_mode("25W"):
        assert asked == ["MAXN_SUPER", "25W"]
    assert "25W already" in capsys.readouterr().err
