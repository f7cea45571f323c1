"""The board: what is only true of a Jetson. Stands on `runtime` alone and knows no torch."""
