"""The quality report of an export, as JSON and as a page."""
