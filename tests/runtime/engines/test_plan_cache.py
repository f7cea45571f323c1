import errno
import multiprocessing
import os
import stat
from contextlib import contextmanager
from dataclasses import replace

import pytest
from dlm_edge.runtime import files
from dlm_edge.runtime.engines import plan_cache
from dlm_edge.runtime.engines.plan_cache import HEADER_BYTES, NewPlan, PlanCache, PlanKey
from dlm_edge.runtime.errors import DlmError, EngineError

KEY = PlanKey(
    bundle_sha256="ab" * 32,
    file="graphs/denoise.onnx",
    precision="fp16",
    backend_version="tensorrt 10.3.0",
    gpu_name="Orin",
    compute_capability="8.7",
    driver_version=12060,
    power_mode="0002",
    options={"workspace_mib": 512, "weakly_typed": False},
)
PLAN = bytes(range(256)) * 40
FACTS = {"bundle": "toy.dlm", "seconds": 1.5}


def new_plan(data=PLAN):
    return NewPlan(data=memoryview(data), facts=FACTS)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(home, notes):
    return PlanCache(notes.append)


def never():
    raise AssertionError("it was built again")


def the_file(cache):
    (path,) = cache.folder.glob("*.plan")
    return path


def test_a_plan_is_built_once_and_loaded_after_that(cache):
    assert cache.load(KEY) is None
    assert cache.obtain(KEY, new_plan) == PLAN
    assert cache.obtain(KEY, never) == PLAN
    assert PlanCache().load(KEY) == PLAN


def test_folder_and_plans_are_the_users_alone(cache):
    cache.obtain(KEY, new_plan)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(the_file(cache).stat().st_mode) == 0o600


def test_a_folder_that_others_could_enter_is_closed(cache):
    cache.folder.chmod(0o777)
    PlanCache()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_sha256": "cd" * 32},
        {"precision": "fp32"},
        {"backend_version": "tensorrt 10.16.2"},
        {"gpu_name": "Orin NX"},
        {"compute_capability": "8.6"},
        {"driver_version": 13020},
        {"power_mode": "0000"},
        {"options": {"workspace_mib": 256, "weakly_typed": False}},
    ],
)
def test_whatever_a_plan_depends_on_gives_another_plan(cache, change):
    cache.obtain(KEY, new_plan)
    assert cache.load(replace(KEY, **change)) is None


def test_rebuild_replaces_a_sound_plan(cache):
    cache.obtain(KEY, new_plan)
    assert cache.obtain(KEY, lambda: new_plan(b"other" * 99), rebuild=True) == b"other" * 99


@pytest.mark.parametrize("place", [3, 40, HEADER_BYTES, HEADER_BYTES + 5000, -1])
def test_a_flipped_byte_anywhere_is_noticed_and_built_again(cache, notes, place):
    cache.obtain(KEY, new_plan)
    path = the_file(cache)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert cache.obtain(KEY, new_plan) == PLAN
    assert "built again" in notes[0]
    assert cache.obtain(KEY, never) == PLAN


@pytest.mark.parametrize("size", [0, 10, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 9000])
def test_a_truncated_plan_is_built_again(cache, notes, size):
    cache.obtain(KEY, new_plan)
    os.truncate(the_file(cache), size)
    assert cache.obtain(KEY, new_plan) == PLAN
    assert len(notes) >= 1


def test_the_plan_of_another_board_under_this_name_is_built_again(cache, notes):
    other = replace(KEY, gpu_name="Orin NX")
    cache.obtain(other, new_plan)
    the_file(cache).rename(cache.folder / f"{KEY.digest}.plan")
    assert cache.obtain(KEY, lambda: new_plan(b"mine" * 50)) == b"mine" * 50
    assert "something else" in notes[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_a_build_that_ends_early_leaves_nothing_behind(cache, error):
    def stopped():
        raise error("stopped")

    with pytest.raises(error):
        cache.obtain(KEY, stopped)
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]
    assert cache.obtain(KEY, new_plan) == PLAN


def test_an_interrupted_write_leaves_no_half_plan(cache, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.obtain(KEY, new_plan)
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]


def test_a_disk_that_fills_up_gives_one_line(cache, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EngineError, match=r"no space for a plan under .*XDG_CACHE_HOME"):
        cache.obtain(KEY, new_plan)
    assert not list(cache.folder.glob(".*"))


def test_too_little_space_is_found_out_before_building(cache, monkeypatch):
    monkeypatch.setattr(plan_cache, "free_bytes", lambda folder: 1 << 20)
    with pytest.raises(EngineError, match=r"needs about \d+ MiB .* free some space"):
        cache.obtain(KEY, never, need_bytes=1 << 30)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_gives_one_line(cache):
    cache.folder.chmod(0o500)
    try:
        with pytest.raises(EngineError, match=r"cannot write plans to .*XDG_CACHE_HOME"):
            cache.obtain(KEY, new_plan)
    finally:
        cache.folder.chmod(0o700)


def test_a_plan_that_is_there_is_taken_from_a_cache_that_nobody_can_write(cache, monkeypatch):
    cache.obtain(KEY, new_plan)

    def refuses(path, mode):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(cache.folder), "chmod", refuses)
    assert PlanCache().obtain(KEY, never) == PLAN
    assert len(PlanCache().entries()) == 1


def test_a_file_in_the_place_of_the_folder_gives_one_line(home):
    (home / "dlm-edge").mkdir(mode=0o700)
    (home / "dlm-edge" / "plans").write_bytes(b"")
    with pytest.raises(DlmError, match="cannot write plans"):
        PlanCache()


def obtain_slowly(folder, ready, go, built):
    os.environ["XDG_CACHE_HOME"] = folder
    cache = PlanCache()

    def build():
        built.put(os.getpid())
        ready.set()
        go.wait(600)
        return new_plan()

    assert cache.obtain(KEY, build) == PLAN


def test_of_two_processes_one_builds_and_the_other_waits_for_it(cache, notes, home):
    context = multiprocessing.get_context("fork")
    ready, go, built = context.Event(), context.Event(), context.SimpleQueue()
    other = context.Process(target=obtain_slowly, args=(str(home), ready, go, built))
    other.start()
    assert ready.wait(600)
    cache._note = lambda line: (notes.append(line), go.set())  # only once we do wait
    assert cache.obtain(KEY, never) == PLAN
    other.join(600)
    assert other.exitcode == 0
    assert notes == ["another process builds this plan: waiting for it"]


def test_the_list_shows_sound_and_damaged_plans(cache):
    cache.obtain(KEY, new_plan)
    (cache.folder / "foreign.plan").write_bytes(b"\x00" * 100)
    entries = {entry.path.name: entry for entry in cache.entries()}
    assert entries["foreign.plan"].header is None
    sound = entries[f"{KEY.digest}.plan"]
    assert sound.header["facts"] == FACTS
    assert sound.bytes == HEADER_BYTES + len(PLAN)


def test_clearing_takes_one_bundles_plans_or_everything(cache):
    other = replace(KEY, bundle_sha256="cd" * 32)
    cache.obtain(KEY, new_plan)
    cache.obtain(other, new_plan)
    cache.keep_timings(KEY, b"times")
    assert cache.clear(KEY.bundle_sha256) == (1, HEADER_BYTES + len(PLAN))
    assert cache.load(KEY) is None
    assert cache.load(other) == PLAN
    assert cache.timings(KEY) == b"times"
    assert cache.clear()[0] == 1
    assert cache.entries() == []
    assert cache.timings(KEY) == b""


def test_kernel_times_are_kept_per_machine_not_per_bundle(cache):
    assert cache.timings(KEY) == b""
    cache.keep_timings(KEY, b"times")
    assert cache.timings(replace(KEY, bundle_sha256="cd" * 32, precision="int8")) == b"times"
    assert cache.timings(replace(KEY, power_mode="0000")) == b""


@pytest.mark.parametrize(
    "other",
    [
        {"backend_version": "tensorrt 10.16.2"},
        {"gpu_name": "Orin NX"},
        {"compute_capability": "8.6"},
        {"driver_version": 13020},
        {"power_mode": "0000"},
    ],
)
def test_kernel_times_of_another_machine_are_not_taken(cache, other):
    cache.keep_timings(KEY, b"times")
    assert cache.timings(replace(KEY, **other)) == b""


def test_kernel_times_that_cannot_be_kept_cost_time_only(cache, notes, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plan_cache, "write_beside", full)
    cache.keep_timings(KEY, b"times")
    assert notes == ["kernel times are not kept (No space left on device): builds stay slow"]


def turns(monkeypatch, cache, plan, waits):
    """Another process builds and stores its plan before we hold the lock."""

    @contextmanager
    def locked(path, busy):
        if waits:
            busy()
        cache._store(KEY, new_plan(plan))
        yield

    monkeypatch.setattr(plan_cache, "locked", locked)


@pytest.mark.parametrize("rebuild", [False, True])
def test_what_another_process_built_while_we_waited_is_taken(cache, monkeypatch, rebuild):
    turns(monkeypatch, cache, b"theirs" * 99, waits=True)
    assert cache.obtain(KEY, never, rebuild=rebuild) == b"theirs" * 99


def test_what_another_process_built_just_before_our_turn_is_taken(cache, monkeypatch):
    turns(monkeypatch, cache, b"theirs" * 99, waits=False)
    assert cache.obtain(KEY, never) == b"theirs" * 99


def test_the_list_begins_with_the_newest(cache):
    for age, name in enumerate(("a", "b", "c")):
        cache.obtain(replace(KEY, file=name), new_plan)
        os.utime(cache.folder / f"{replace(KEY, file=name).digest}.plan", (1e9, 1e9 + age % 2))
    newest = cache.entries()[0]
    assert newest.header["key"]["file"] == "b"


def test_clearing_everything_takes_what_a_killed_process_left(cache):
    left = cache.folder / f".x.plan.0123{files.UNFINISHED}"
    left.write_bytes(b"half")
    cache.clear(KEY.bundle_sha256)
    assert left.exists()
    cache.clear()
    assert not left.exists()
