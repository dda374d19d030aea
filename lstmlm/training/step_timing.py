"""How long a training step takes here: what `auto_tune` chooses sizes by, through `timer`.

On a CPU steps are taken as the run takes them, in the chosen kernel and with the real vocabulary, layers and readout, on ids that
are drawn. On a GPU a recurrence of a middling size is measured, as each size would have to be recorded as a graph first.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch

from lstmlm.config.run_config import ModelConfig, RunConfig
from lstmlm.kernels import Kernel
from lstmlm.kernels.cuda_graph import read_back, speed_of
from lstmlm.model.lstm import StackState
from lstmlm.model.weights import PAIRS, weight_shapes
from lstmlm.training import malloc
from lstmlm.training.members import Members
from lstmlm.training.teacher import Teacher

MOST_STEPS = 100  # steps that are timed
SHARE = 0.004  # of a budget in minutes, for each size that is measured ...
LEAST = 0.05  # ... but so many seconds
MOST_WORK = 5e10  # multiplications of a step that is timed whole, a second or two of it; of a larger one a part is timed
LEAST_ROWS, LEAST_WINDOW = 16, 8  # of that part, where the step has so many: with fewer a character takes longer
SEGMENTS = 4  # of `train.segment` in that part
SHARE_OF_SPEED = 0.95  # of a recurrence's speed that a whole training step reaches: scripts/bench/bench.py train


def timer(
    vocabulary: int,
    kernel: Kernel,
    device: torch.device,
    members: int,
    processes: int,
    teacher: Teacher | None = None,
    separator: Sequence[int] = (),
) -> Callable[[RunConfig], float]:
    """Return what says how many seconds a step of a configuration takes.

    Args:
        vocabulary: V.
        kernel: What runs the recurrence.
        device: Where.
        members: How many networks learn side by side.
        processes: That share the batch.
        teacher: From which they learn too.
        separator: Ids of what parts documents.
    """
    if device.type == "cpu":

        def measured(config: RunConfig) -> float:
            rows = max(1, (config.train.batch or 1) // processes)
            gc.freeze()  # what has been imported is not looked through below
            seconds = max(LEAST, SHARE * 60 * (config.train.minutes or 0.0))
            found = step_seconds(config, vocabulary, kernel, device, rows, seconds, teacher, separator)
            gc.collect()  # a recorded step refers to itself
            malloc.give_back()
            return found

        return measured
    speed = SHARE_OF_SPEED * speed_of(kernel, device) * processes

    def estimated(config: RunConfig) -> float:
        weights = members * _weights(config.model) + (teacher.config.members * _weights(teacher.config) / 3 if teacher else 0)
        chars = (config.train.batch or 0) * (config.train.window or 0)
        return 6 * weights * chars / speed  # a third of it forwards

    return estimated


def _weights(model: ModelConfig) -> int:
    """Count the recurrent and input weights of one network."""
    hidden, layers = model.hidden or 0, model.layers or 0
    return 4 * hidden * hidden * (2 * layers - 1)


def step_seconds(
    config: RunConfig,
    vocabulary: int,
    kernel: Kernel,
    device: torch.device,
    rows: int,
    seconds: float,
    teacher: Teacher | None = None,
    separator: Sequence[int] = (),
) -> float:
    """Measure a step of all members.

    Args:
        config: With no size open.
        vocabulary: V.
        kernel: What runs the recurrence.
        device: Where.
        rows: Streams of this process.
        seconds: How long to measure, if that is enough for two steps after the first.
        teacher: From which they learn too.
        separator: Ids of what parts documents.

    Returns:
        Seconds of all characters of the step, of which a part may have been timed: the mean of the quicker half, as it is the
        machine that is asked for and not what else runs on it at times; on all threads or on one, whichever is quicker, as the
        trainer does.
    """
    window = config.train.window
    assert window is not None
    whole = rows * window
    rows, window = _timed_part(config, _multiplied(config.model, vocabulary, teacher), rows, window)
    quickly = replace(config, model=replace(config.model, orthogonal=False))
    members = Members(quickly, vocabulary, kernel, device, separator, teacher)
    members.prepare({rows}, window, rows)
    ids = torch.randint(vocabulary, (window + 1, rows), generator=torch.Generator().manual_seed(0))
    state: StackState | None = None
    threads = torch.get_num_threads()
    taken: dict[int, list[float]] = {count: [] for count in (threads, threads if config.train.threads else 1)}
    step = -1  # which finds memory and caches cold
    began = 0.0
    try:
        while step < 2 * len(taken) or (time.perf_counter() - began < seconds and step < MOST_STEPS):
            count = list(taken)[step % len(taken)]
            torch.set_num_threads(count)
            start = time.perf_counter()
            members.begin(1e-4)
            loss, state = members.learn(ids[:-1], ids[1:], state, step + 1, rows, 0)
            read_back(loss, *chain.from_iterable(members.finish(loss)))
            if step >= 0:
                taken[count].append(time.perf_counter() - start)
            step += 1
            if step == 0:
                began = time.perf_counter()
    finally:
        torch.set_num_threads(threads)
    found = min(statistics.mean(sorted(times)[: (len(times) + 1) // 2]) for times in taken.values())
    return found * whole / (rows * window)


def _multiplied(model: ModelConfig, vocabulary: int, teacher: Teacher | None) -> float:
    """Return the multiplications of a character: forwards and two ways back for each weight but the tables of the first layer."""
    own = 3 * _products(model, vocabulary)
    return own + _products(teacher.config, vocabulary) if teacher else own  # which only reads


def _products(model: ModelConfig, vocabulary: int) -> int:
    shapes = weight_shapes(model, vocabulary)
    tables = "layers.0.U", "layers.0.M", PAIRS
    return model.members * sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and name not in tables)


def _timed_part(config: RunConfig, multiplied: float, rows: int, window: int) -> tuple[int, int]:
    """Return the rows and the window that are timed for a step: a part of both, where all of it would take long.

    Args:
        config: With no size open.
        multiplied: Multiplications of a character.
        rows: Of the step.
        window: Likewise.
    """
    share = MOST_WORK / (multiplied * rows * window)
    if share >= 1:
        return rows, window
    fewer = max(min(rows, LEAST_ROWS), int(rows * share))
    segment = config.train.segment
    least = SEGMENTS * segment if segment else LEAST_WINDOW  # of which all but the last are read twice
    return fewer, min(window, max(least, int(window * share * rows / fewer)))
