"""The command line."""

from jaxdti.cli.main import main, make_parsers

__all__ = ["main", "make_parsers"]
