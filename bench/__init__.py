"""Benchmarks against other implementations: `python -m bench`; a module for each family of rows."""
