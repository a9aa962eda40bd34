"""How fast are we, beside others? `python -m eval.benchmark`; a module for each family of rows."""
