"""Errors that a user can mend, or that end a training."""

import signal


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the last checkpoint is from before."""


class Interrupted(RuntimeError):
    """A signal asked to stop; the state is saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal = signal_number


class DataError(ValueError):
    """Input that the user has to mend. The command line prints it as one line and exits with 2."""
