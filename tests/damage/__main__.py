"""Runs campaigns: `python -m damage NAME … --count N`, again to go on, with counts in a folder.

A worker tries the cases, one line of JSON each; this process counts, ends a worker that hangs, and
starts another behind a case that took the worker with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

HELPERS = Path(__file__).resolve().parents[1]
FIRST_SECONDS = 900.0
"""A worker prepares its inputs before its first case."""
LOOK_SECONDS = 5.0
"""A silent worker's CPU time is looked at so often."""
SAVED_SECONDS = 5.0
"""Counts are written so often."""
MAX_BYTES = 12 << 30
"""Address space of a worker: a damaged size must not take the machine's memory."""


def work(name: str, folder: Path, seed: int, first: int, count: int) -> None:
    """Tries cases `first` to `count`, and prints what came of each."""
    sys.path[:0] = [str(HELPERS), str(HELPERS / "helpers")]
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OMP_NUM_THREADS"] = "1"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    scratch = folder / f"scratch-{name}-{seed}"  # a worker that was ended left its own
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(scratch / "sound")
    from damage.cases import CAMPAIGNS, outcome

    campaign = CAMPAIGNS[name]
    inputs = campaign.prepare(folder)
    place = scratch / "case"
    for case in range(first, count):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        begin = time.process_time()
        found: dict[str, Any] = {"case": case}
        try:
            found["outcome"] = outcome(campaign, Random(f"{seed} {name} {case}"), place, inputs)
        except BaseException as error:
            found["outcome"] = "fault"
            found["fault"] = "".join(traceback.format_exception(error))[-3000:]
        found["cpu"] = time.process_time() - begin
        print(json.dumps(found), file=out, flush=True)
    shutil.rmtree(scratch, ignore_errors=True)


class Count:
    """What a campaign has found so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"next": 0, "outcomes": {}, "cpu_seconds": 0.0, "faults": []}
        if path.exists():
            self.found = json.loads(path.read_text("utf-8"))

    def add(self, one: dict[str, Any]) -> None:
        """Counts a case."""
        found = self.found
        found["next"] = one["case"] + 1
        found["outcomes"][one["outcome"]] = found["outcomes"].get(one["outcome"], 0) + 1
        found["cpu_seconds"] = round(found["cpu_seconds"] + one.get("cpu", 0.0), 3)
        if "fault" in one:
            found["faults"].append(one)

    def save(self) -> None:
        """Writes the file; killed in between, the one before stays."""
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.found, indent=1) + "\n", "utf-8")
        os.replace(beside, self.path)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and of the children that it has waited for."""
    words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def _lines(process: subprocess.Popen[bytes], seconds: float) -> Any:
    """Yields a worker's lines; None once it has computed so long without one, or waited a while.

    On a busy machine a worker may get next to no time: that is no hang.
    """
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    wait, waited, before = FIRST_SECONDS, 0.0, 0.0
    while True:
        if selector.select(LOOK_SECONDS):
            line = process.stdout.readline()
            if not line:
                return
            yield json.loads(line)
            wait, waited, before = seconds, 0.0, _cpu_seconds(process.pid)
        else:
            waited += LOOK_SECONDS
            if _cpu_seconds(process.pid) - before > wait or waited > 20 * wait:
                yield None
                return


def run(name: str, folder: Path, seed: int, count: int, until: float) -> Count:
    """Goes on with a campaign up to `count` cases or the time `until`."""
    from damage.cases import CAMPAIGNS

    counted = Count(folder / f"{name}-{seed}.json")
    while counted.found["next"] < count and time.time() < until:
        first = counted.found["next"]
        words = [sys.executable, "-m", "damage", name, "--folder", str(folder), "--work"]
        words += ["--seed", str(seed), "--first", str(first), "--count", str(count)]
        log = (folder / f"{name}-{seed}.log").open("w")
        # Without a buffer: a line that waits in one would be taken for a case that hangs.
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, bufsize=0)
        why, saved = "fault", time.time()
        try:
            for one in _lines(process, CAMPAIGNS[name].seconds):
                if one is None:
                    why = "hang"
                    process.send_signal(signal.SIGABRT)  # faulthandler says where
                    break
                counted.add(one)
                if "fault" in one:
                    print(f"{name} {seed} case {one['case']}: {one['fault'].strip()[-300:]}")
                if time.time() > saved + SAVED_SECONDS:
                    counted.save()
                    saved = time.time()
                if time.time() > until:
                    process.terminate()
                    counted.save()
                    return counted
        finally:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            log.close()
        if process.returncode:
            tail = Path(log.name).read_text("utf-8", "replace")[-2000:]
            at = counted.found["next"]
            if at == first and "Error" in tail and why != "hang" and process.returncode == 1:
                raise SystemExit(f"{name}: the worker does not start: {tail}")
            fault = f"{why}: the worker ended with {process.returncode}; {tail}"
            counted.add({"case": at, "outcome": why, "fault": fault})
            print(f"{name} {seed} case {at}: {fault[-300:]}")
        counted.save()
    return counted


def main() -> None:
    """Parses, runs, prints the counts."""
    parser = argparse.ArgumentParser(prog="damage", description=__doc__)
    parser.add_argument("names", nargs="*", help="Campaigns; all unless named.")
    parser.add_argument("--folder", type=Path, default=Path(".damage"), help="Inputs and counts.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="Cases of each campaign in all.")
    parser.add_argument("--minutes", type=float, default=30.0, help="At most for each, this time.")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if asked.work:
        import faulthandler

        faulthandler.enable()
        work(asked.names[0], folder, asked.seed, asked.first, asked.count)
        return
    sys.path[:0] = [str(HELPERS), str(HELPERS / "helpers")]
    from damage.cases import CAMPAIGNS

    for name in asked.names or CAMPAIGNS:
        if name not in CAMPAIGNS:
            parser.error(f"no campaign {name!r}; there are {', '.join(CAMPAIGNS)}")
        until = time.time() + 60 * asked.minutes
        found = run(name, folder, asked.seed, asked.count, until).found
        counts = ", ".join(f"{n} {word}" for word, n in sorted(found["outcomes"].items()))
        print(
            f"{name}, seed {asked.seed}: {found['next']} cases, {found['cpu_seconds']:.0f} CPU s: "
            f"{counts}"
        )


if __name__ == "__main__":
    main()
