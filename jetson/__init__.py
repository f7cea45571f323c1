"""The board: what is only true of a Jetson. Needs `runtime` alone and knows no torch."""
