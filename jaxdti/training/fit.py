"""Training: one loop over two executors, which differ in how steps reach the device.

Networks on rows of a matrix, three seeds at once:

    trials = [Trial(rows={"train": train, "validation": held_out}, label=label, seed=seed) for seed in range(3)]
    task = row_task(model, init, features, trials, batch_size=64, select="auroc")
    result = fit(task, trials, TrainingConfig(epochs=30, batch_size=64))  # result.best_value, result.variables
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from jaxdti.config import TrainingConfig
from jaxdti.errors import Interrupted
from jaxdti.training.mesh import largest, to_host
from jaxdti.training.plans import EvenPlan
from jaxdti.training.progress import Progress, Reporter
from jaxdti.training.resident import Resident, check_rows
from jaxdti.training.signals import stop_signals
from jaxdti.training.streamed import Streamed
from jaxdti.training.task import FitResult, Task, Trial, Variables

Saved = tuple[Any, Any, dict[str, Any]]  # state, best variables (pytrees of arrays) and progress (JSON)


class Run(Protocol):
    """Where a training is kept; see ``run_folder.RunFolder``."""

    def restored(self, like: Callable[[], tuple[Any, Any]]) -> Saved | None:
        """What was saved last, if anything; ``like()`` gives structure and shapes of state and best variables."""
        ...

    def save(self, updates: int, saved: Saved) -> None: ...

    def reporting(self, progress: Progress, epochs: int) -> AbstractContextManager[Reporter]: ...


class Executor(Protocol):
    """How the steps of trials reach the device."""

    progress: Progress
    save_seconds: float  # between two checkpoints, which are at ends of epochs only

    def arrays(self) -> tuple[Any, Any]: ...
    def position(self) -> dict[str, Any]: ...
    def restore(self, state: Any, best: Any, position: dict[str, Any]) -> None: ...
    def begin(self, report: Reporter) -> None: ...
    def updates(self) -> int: ...
    def active(self) -> Sequence[bool]: ...
    def advance(self, stopped: Sequence[int]) -> Iterator[bool]: ...
    def result(self) -> FitResult: ...


def fit(
    task: Task,
    trials: Sequence[Trial],
    config: TrainingConfig,
    *,
    run: Run | None = None,
    start: Variables | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Trains one model for each trial; together or one by one, a state has the same gradient up to rounding.

    Where a gradient is rounding alone, as of a bias before a BatchNorm, Adam makes whole steps of it, of either sign.

    Every epoch is planned from (seed, epoch) alone, so that a resumed training repeats an unbroken one. A trial that
    has stopped or failed is left as it is.

    Args:
      task: an ``EvenPlan`` trains whole epochs in one program on the device, a ``BucketPlan`` streams its batches.
      config: epochs, batch_size, schedule, warmup_epochs, clip_norm and patience.
      run: keeps checkpoints and metrics, and is continued where it holds a checkpoint. None: nothing is written.
      start: variables to start from instead of ``task.init``, stacked on axis 0; the optimiser starts anew.
      progress: called after each look at the device; what it raises ends the training.

    Raises:
      NonFiniteLoss: a streamed training, all of whose trials have failed; of a single one, the step and the rows of its
        batch are named.
      Interrupted: SIGTERM or SIGINT arrived; the run, if any, is saved.
      ValueError: an ``EvenPlan`` without a trial, a training row or a label, or a selector without its rows.
    """
    executor = _executor(task, trials, config, start)
    with _reporting(run, executor, config.epochs) as report, stop_signals() as stopped:
        executor.begin(report)
        saved_at = time.perf_counter()
        while any(executor.active()):
            for finished in executor.advance(stopped):
                if progress is not None:
                    progress(executor.progress)
                number = largest(stopped[0] if stopped else 0)  # the signal that has reached any of the processes
                due = finished and time.perf_counter() - saved_at >= executor.save_seconds
                if run is not None and (due or number):
                    # Of several processes the first one writes, and it holds a part of the arrays only. Alone, too:
                    # Orbax takes half of the time for arrays of NumPy.
                    arrays, updates = to_host(executor.arrays()), executor.updates()
                    run.save(updates, (*arrays, executor.position()))
                    saved_at = time.perf_counter()
                if number:
                    raise Interrupted(number)
    return executor.result()


def _executor(task: Task, trials: Sequence[Trial], config: TrainingConfig, start: Variables | None) -> Executor:
    if isinstance(task.plan, EvenPlan):
        check_rows(task, trials)
        return Resident(task, trials, config, start)
    return Streamed(task, trials, config, start)


@contextmanager
def _reporting(run: Run | None, executor: Executor, epochs: int) -> Iterator[Reporter]:
    """Restores what ``run`` holds, and reports to it."""
    if run is None:
        yield Reporter()
        return
    if (saved := run.restored(executor.arrays)) is not None:
        executor.restore(*saved)
    with run.reporting(executor.progress, epochs) as report:
        yield report
