"""`python -m dlm_edge.runtime` is `dlm-run`."""

from .cli.run import main

if __name__ == "__main__":
    main()
