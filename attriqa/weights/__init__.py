"""The weights inside the package, and their model cards."""
