"""The bundle on disk: manifest, archive, unpacking. Nothing in it is trusted."""
