"""`python -m dlm_edge.runtime` is `dlm-run`."""

from .cli import main

if __name__ == "__main__":
    main()
