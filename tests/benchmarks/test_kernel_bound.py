"""Machine code is read as it is: on recorded lines, and on the shipped kernels where tools are."""

import json
import shutil

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks.kernel_bound import bound, main, resources
from dlm_edge.benchmarks.kernel_passes import PASSES, TARGETS, WEIGHTS, Pass, named_lines, pipe_of
from dlm_edge.benchmarks.sass import functions, loops, shortest_turn
from dlm_edge.runtime.gpu.compile import OPS

RECORDED = """
\t.section\t.text.one,"ax",@progbits
.text.one:
\t//## File "/a/row.cuh", line 7 inlined at "/a/one.cu", line 3
\t//## File "/a/one.cu", line 3
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   LDG.E.U16 R5, [R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
\t//## File "/a/one.cu", line 9
        /*0030*/                   DADD R4, R4, R6 ;
        /*0040*/                   BRA.DIV ~URZ, `(.L_x_9) ;
        /*0050*/              @P1  MUFU.EX2 R7, R7 ;
.L_x_1:
        /*0060*/                   FADD R5, R5.reuse, 1 ;
        /*0070*/               @P2 BRA `(.L_x_2) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
\t.section\t.nv.info,"",@"SHT_CUDA_INFO"
.nv.info:
        /*0000*/ \t.byte\t0x04, 0x2f
"""
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_87'
ptxas info    : Function properties for one
    40 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 61 registers, used 1 barriers, 13936 bytes smem, 368 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_87'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 376 bytes cmem[0]
"""


def test_blocks_and_loops_are_those_of_the_recorded_code():
    blocks = functions(RECORDED)["one"]
    opcodes = [[one.opcode for one in block.instructions] for block in blocks]
    assert opcodes[:2] == [["MOV"], ["LDG.E.U16", "BRA"]]
    assert ["DADD", "BRA.DIV", "MUFU.EX2"] in opcodes
    found = loops(blocks)
    assert found[0].head == 1
    turn = shortest_turn(blocks, found[0], [])
    assert [one.opcode for one in turn] == ["LDG.E.U16", "BRA", "FADD", "BRA"]
    double = opcodes.index(["DADD", "BRA.DIV", "MUFU.EX2"])
    longer = shortest_turn(blocks, found[0], [double])
    assert [one.name for one in longer] == ["LDG", "BRA", "DADD", "BRA", "MUFU", "FADD", "BRA"]
    assert [pipe_of(one) for one in longer][:3] == ["memory", "integer", "double"]
    assert blocks[0].instructions[0].places == {("row.cuh", 7), ("one.cu", 3)}
    assert blocks[double].instructions[0].places == {("one.cu", 9)}


def test_registers_shared_memory_and_spills_are_read():
    assert resources(PTXAS) == {
        "one": {"registers": 61, "shared_bytes": 13936, "spilled_bytes": 24},
        "two": {"registers": 16, "shared_bytes": 0, "spilled_bytes": 0},
    }


def test_a_bound_is_that_of_the_busiest_pipe_or_of_the_memory():
    orin = TARGETS["Orin Nano, MAXN SUPER"]
    light = Pass(name="a", counts={"float_": 8}, lines=0)
    found = bound([light], orin, bytes_each=2, vocab=1000, rows_at_once=16)
    assert (found["busiest"], found["over_copy"]) == ("memory bandwidth", 0.5)
    # One double per logit: 32 lanes take 16 clocks of 2 lanes, for 32 logits of 4 bytes copied.
    heavy = Pass(name="b", counts={"double": 8}, lines=0)
    found = bound([heavy], orin, bytes_each=2, vocab=1000, rows_at_once=16)
    bytes_per_clock = 102.4e9 / (8 * 1.02e9)
    assert found["busiest"] == "double"
    assert found["over_copy"] == pytest.approx(0.5 / (4 / bytes_per_clock), abs=1e-3)


def test_the_functions_that_loops_are_named_after_are_in_the_sources():
    names = (*PASSES, *WEIGHTS)
    assert set(named_lines(OPS, names)) == set(names)


def test_a_missing_tool_is_one_line_that_says_where_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "nvcc is not here: install the CUDA toolkit" in result.stderr


@pytest.mark.slow
def test_no_shipped_kernel_does_double_precision_in_a_loop_over_the_vocabulary():
    if not (shutil.which("nvcc") and shutil.which("nvdisasm")):
        pytest.skip("no nvcc and nvdisasm here to take the kernels apart with")
    result = CliRunner().invoke(main, ["--json"])
    assert result.exit_code == 0, result.output
    for kernel in json.loads(result.stdout)["kernels"]:
        assert kernel["double_precision_in_loops"] == 0, kernel["kernel"]
        assert kernel["spilled_bytes"] == 0, kernel["kernel"]
        if kernel["kernel"].startswith("sample"):
            assert set(kernel["ways"]) == {"greedy", "drawn", "top-k or top-p"}
            assert kernel["ways"]["drawn"]["over_copy"] <= 1.25
        if kernel["kernel"].startswith("verify"):
            ways = kernel["ways"]
            assert {"greedy", "kept", "rejected"} <= set(ways)
            assert all(ways[way]["over_copy"] <= 1.25 for way in ("greedy", "kept", "rejected"))
        if kernel["kernel"].startswith("propose"):
            assert set(kernel["ways"]) == {"greedy", "drawn"}
            assert all(way["over_copy"] <= 1.25 for way in kernel["ways"].values())
