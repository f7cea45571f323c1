"""`python -m dlm_edge.jetson` is `dlm-profile`."""

from .cli.profile import main

if __name__ == "__main__":
    main()
