"""`python -m dlm_edge.train` is `dlm-train`."""

from .cli import main

main()
