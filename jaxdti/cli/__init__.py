"""The command line."""

from jaxdti.cli.main import main

__all__ = ["main"]
