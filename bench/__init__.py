"""How fast are we, beside others? `python -m bench`; a module for each family of rows."""
