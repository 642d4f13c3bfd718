"""User messages go to standard error; standard output carries results only."""

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for the user."""
    console.print(line, markup=False)


def say_compiled(name: str, seconds: float) -> None:
    """The line about a program that was compiled."""
    say(f"compiled {name} in {seconds:.1f} s")
