from dlm_edge.runtime.engines.tensorrt_build import BuildSettings, _failure
from dlm_edge.runtime.engines.tensorrt_log import MAX_MESSAGES, Phases, process_logger
from toy_bundle import toy_spec


def test_nested_phases_add_up_to_one_fraction():
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("inner", "build", 4)
    phases.step("inner", 0)
    assert phases.fraction == 0.125
    assert phases.phase == "inner"
    for step in (1, 2, 3):
        phases.step("inner", step)
    assert phases.fraction == 0.5
    phases.finish("inner")
    phases.step("build", 0)
    assert phases.fraction == 0.5
    phases.start("inner", "build", 1)
    phases.step("inner", 0)
    assert phases.fraction == 1.0


def test_the_fraction_never_goes_back_and_ends_at_one():
    phases = Phases()
    phases.start("build", None, 3)
    phases.start("part", "build", 2)
    phases.step("part", 1)
    before = phases.fraction
    phases.start("part", "build", 2)  # the same name again, inside the same step
    phases.step("part", 0)
    assert phases.fraction == before
    phases.finish("part")
    phases.finish("build")
    assert phases.fraction == 1.0


def test_a_phase_nobody_announced_is_no_error():
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    assert 0 <= phases.fraction <= 1


def test_a_build_without_memory_says_what_would_fit():
    errors = ["warming up", "Cuda Runtime (out of memory)"]
    specs = [toy_spec(), toy_spec(8, 8)]
    line = _failure(errors, "denoise.onnx", specs, BuildSettings(workspace_mib=64))
    assert "largest shape: denoise (rows 8, context 8); workspace 64 MiB" in line
    assert "out of memory" in line
    assert "smaller --block or --context" in line


def test_any_other_failure_gives_the_first_reason():
    line = _failure(["no kernel"], "denoise.onnx", [toy_spec()], BuildSettings())
    assert line == "TensorRT builds no plan from denoise.onnx: no kernel"
    assert "no reason" in _failure([], "denoise.onnx", [toy_spec()], BuildSettings())


class Module:
    class ILogger:
        ERROR, WARNING = 1, 2

        def __init__(self):
            pass


def test_a_logger_keeps_the_first_lines_and_is_empty_once_they_are_taken():
    log = process_logger(Module)
    assert process_logger(Module) is log
    for number in range(MAX_MESSAGES + 5):
        log.log(1, f"error\n {number}")
    log.log(0, "worse")
    log.log(2, "warning")
    log.log(3, "information")
    errors, warnings = log.take()
    assert errors == [f"error {number}" for number in range(MAX_MESSAGES)]
    assert warnings == ["warning"]
    assert log.take() == ([], [])
