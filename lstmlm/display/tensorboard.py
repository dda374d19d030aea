"""The numbers of a run for TensorBoard, where somebody has installed it: an optional extra.

`train --tensorboard` hands a `Board` to the trainer, which calls it with every event.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lstmlm.training.events import Event, StepDone, SteppedBack, Validated
from lstmlm.training.run_folder import TENSORBOARD
from lstmlm.units import bits

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVERY = 10  # steps whose mean is one point


class Board:
    """Write the records of one run as scalars: training and validation in bits/char, and the rate.

    Args:
        run: The run's folder.
        step: Where it stands; what an earlier process wrote after it no longer counts.
        warn: Called once with a sentence if the files cannot be written: the run goes on without them.
    """

    def __init__(self, run: Path, step: int, warn: Callable[[str], None]) -> None:
        self._folder = run / TENSORBOARD
        self._purge = step + 1 if step else None
        self._warn = warn
        self._writer: SummaryWriter | None = None
        self._broken = False
        self._sum, self._count = 0.0, 0

    def __call__(self, record: Event) -> None:
        """Take one record of the trainer."""
        if self._broken:
            return
        try:
            match record:
                case StepDone():
                    self._step(record)
                case Validated():
                    self._add("bits_per_char/validation", bits(record.nats_per_char), record.step)
                case SteppedBack():
                    self.close()
                    self._purge = record.to + 1
                    self._sum, self._count = 0.0, 0
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError as error:
            if not self._broken:
                self._give_up(error)

    def _step(self, record: StepDone) -> None:
        self._sum, self._count = self._sum + record.nats_per_char, self._count + 1
        if record.step % EVERY and record.step != record.steps:
            return
        self._add("bits_per_char/training", bits(self._sum / self._count), record.step)
        self._add("rate", record.rate, record.step)
        self._sum, self._count = 0.0, 0

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge)
        self._writer.add_scalar(name, value, step)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        self._warn(f"cannot write {self._folder}: {error.strerror or error}. The run goes on without --tensorboard.")
