"""`python -m dlm_edge.export` is `dlm-export`."""

from .cli import main

if __name__ == "__main__":
    main()
