"""The families of the device side, by name in `table.py`, and the parts that several share."""
