"""Every kernel against NumPy, and nothing else: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m dlm_edge.benchmarks.gpu_kernels
"""

from __future__ import annotations

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import EngineError
from ..runtime.gpu.cuda import CudaDevice
from ..runtime.ops.cuda.ops import CudaOps
from ..runtime.ops.primitives import check_kernels


@click.command("gpu-kernels", cls=DlmCommand)
def main() -> None:
    """Compares every kernel on the first GPU with its twin in NumPy."""
    device = CudaDevice()
    for found in check_kernels(CudaOps(device)):
        if not found["ok"]:
            raise EngineError(f"{found['kernel']} differs: {found['faults'][:1]}")
        click.echo(f"{found['kernel']}: {found['rows']} rows")
    device.synchronize()
    device.close()


if __name__ == "__main__":
    main()
