"""The device-side table of families: how each decodes, and how good its model is."""
