"""`dlm-serve`: the page and the HTTP server, over `asynchronous.py`."""
