"""Programs for `python -c` that run a command of this checkout, installed or not."""

LOAD = """
import importlib.util, sys
root = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "dlm_edge", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["dlm_edge"] = package
spec.loader.exec_module(package)
"""
"""Takes the checkout's root off the arguments, and makes it importable as `dlm_edge`."""
