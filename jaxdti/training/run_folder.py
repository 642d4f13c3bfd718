"""What a training keeps in its folder: checkpoints and metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxdti.console import say
from jaxdti.training.checkpoints import Checkpoints, open_checkpoints
from jaxdti.training.mesh import is_lead
from jaxdti.training.progress import Progress, Reporter, RunReporter

Saved = tuple[Any, Any, dict[str, Any]]


class RunFolder:
    """``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/`` of a training. Of several processes the first writes."""

    def __init__(self, folder: Path, checkpoints: Checkpoints, *, tensorboard: bool = False, quiet: bool = False):
        """``quiet``: a status line instead of a line an epoch and trial, as for trainings of many small networks."""
        self.folder, self.checkpoints, self.tensorboard, self.quiet = folder, checkpoints, tensorboard, quiet

    def restored(self, like: Callable[[], tuple[Any, Any]]) -> Saved | None:
        """What was saved last, if anything; ``like()`` gives structure and shapes of state and best variables.

        Raises:
          DataError: there are checkpoints, but none can be read.
        """
        if self.checkpoints.latest() is None:
            return None
        saved = self.checkpoints.restore(*like())
        if is_lead():
            say(f"resuming after epoch {saved[2]['epoch']}, chunk {saved[2]['chunk']}")
        return saved

    def save(self, updates: int, saved: Saved) -> None:
        """Keeps ``saved`` as the checkpoint of so many updates."""
        if is_lead():
            self.checkpoints.save(updates, *saved)

    @contextmanager
    def reporting(self, progress: Progress, epochs: int) -> Iterator[Reporter]:
        """The reporter of the first process; those of the others are silent."""
        if not is_lead():
            yield Reporter()
            return
        with RunReporter(self.folder, progress, epochs, self.tensorboard, quiet=self.quiet) as report:
            yield report.reporter()


@contextmanager
def open_run(folder: Path, *, tensorboard: bool = False, quiet: bool = False) -> Iterator[RunFolder]:
    """The folder of a training, new or to be continued."""
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        yield RunFolder(folder, checkpoints, tensorboard=tensorboard, quiet=quiet)
