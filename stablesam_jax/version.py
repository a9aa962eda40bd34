"""The version of this package, in its one place: pip, saved files and results read it here."""

__version__ = "0.1.0"
