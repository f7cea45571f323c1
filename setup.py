"""Maps the root folder to the package `dlm_edge`; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("train", "calibration", "export", "runtime", "jetson")
found = find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
setup(
    script_name="setup.py",  # named, so that this file is not shipped as dlm_edge.setup
    package_dir={"dlm_edge": "."},
    packages=["dlm_edge", *(f"dlm_edge.{name}" for name in found)],
)
