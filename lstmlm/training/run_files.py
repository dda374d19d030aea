"""What a run keeps in its folder: the checkpoints `last`, `best` and `step-N`, and the journals whose length `last` holds.

`RunFiles` writes them, for rank 0's trainer; `restore` gives every rank what a `last` checkpoint holds.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstmlm.config.run_config import RunConfig, to_dict
from lstmlm.data import saved_model
from lstmlm.data.corpus import Corpus
from lstmlm.errors import CheckpointError
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import load_weights
from lstmlm.model.lstm import StackState
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.storage.journal import Journal
from lstmlm.training.clock_log import Times
from lstmlm.training.events import TrainState
from lstmlm.training.members import Members

Scores = Mapping[str, Any]
"""What a checkpoint says of how good its model is."""


class RunFiles:
    """The folder of a run, open for writing.

    Args:
        folder: It exists.
        identity: What every checkpoint says about the run beside what is known here: versions, command.
        config: No size open.
        corpus: What is learnt.
        members: Whose weights and optimizers are saved.
        progress: Where the run stands: what the journals hold beyond is cut off.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        config: RunConfig,
        corpus: Corpus,
        members: Members,
        progress: TrainState,
    ) -> None:
        self.last = folder / "last.safetensors"
        self._folder, self._members = folder, members
        self._best = folder / "best.safetensors"
        own = {
            "config": to_dict(config),
            "tokenizer": corpus.tokenizer.to_dict(),
            "counts": list(corpus.counts),
        }
        of_model = saved_model.with_few_names(identity if config.data.paths else saved_model.without_places(identity))
        self._about = {"best": of_model | own, "last": identity | own}
        self._times = Times(folder)
        self._open(progress)
        self._times.begin(progress.step)

    def _open(self, progress: TrainState) -> None:
        self._metrics = Journal.open(self._folder / "metrics.jsonl", progress.metrics_bytes)
        self._samples = Journal.open(self._folder / "samples.txt", progress.samples_bytes)

    def step_back(self, progress: TrainState) -> None:
        """Cut off what the journals hold beyond an earlier step."""
        self._metrics.close()
        self._samples.close()
        self._open(progress)
        self._times.step_back(progress.step)

    def close(self) -> None:
        """Close the journals: another trainer takes over the folder."""
        for journal in (self._metrics, self._samples, self._times):
            journal.close()

    def log(self, progress: TrainState, record: dict[str, Any]) -> None:
        """Write a record of metrics.jsonl."""
        self._metrics.append(record)
        progress.metrics_bytes = self._metrics.size
        self._times.reached(progress.step)

    def add_sample(self, progress: TrainState, text: str) -> None:
        """Write a sample of the step that the run is at."""
        self._samples.append_text(f"--- step {progress.step}\n{text}\n")
        progress.samples_bytes = self._samples.size

    def write_last(self, progress: TrainState, scores: Scores, state: StackState | None) -> None:
        """Commit all that going on needs.

        Args:
            progress: Where the run stands.
            scores: Of the best model.
            state: That all streams carry to the next step; None before the first.

        Raises:
            Diverged: Something in it is not finite; nothing was written.
        """
        self._metrics.sync()  # the checkpoint says how long they are: they come first
        self._samples.sync()
        whole = self._checkpoint("last", progress.step, scores)
        tensors = {
            f"optimizer.{member.prefix}{name}": tensor
            for member in self._members.each
            for name, tensor in member.optimizer.state().items()
        }
        for index, layer in enumerate(state or ()):
            tensors |= {f"state.{index}.{part}": tensor for part, tensor in layer._asdict().items()}
        whole.meta["training"] = progress.to_meta()
        whole.tensors.update(checkpoint.to_blobs(tensors))
        checkpoint.write(self.last, whole)
        self._times.reached(progress.step)

    def write_best(self, step: int, scores: Scores) -> None:
        """Replace the best model by that of this step."""
        checkpoint.write(self._best, self._checkpoint("best", step, scores))

    def write_snapshot(self, step: int, scores: Scores) -> None:
        """Keep the model of this step in a file of its own."""
        checkpoint.write(self._folder / f"step-{step}.safetensors", self._checkpoint("best", step, scores))

    def read_best(self) -> Checkpoint:
        """Return the best model."""
        return checkpoint.read(self._best)

    def rescore_best(self, best: Checkpoint, scores: Scores) -> None:
        """Write the best model, as it was read, with other scores."""
        checkpoint.write(self._best, replace(best, meta={**best.meta, "scores": scores}))

    def _checkpoint(self, kind: str, step: int, scores: Scores) -> Checkpoint:
        """Return the model as it is, with averaged weights where there are any."""
        network = self._members.network
        with self._members.averaged():
            blobs = checkpoint.to_blobs({f"model.{k}": v for k, v in network.state_dict().items()})
        known = {"step": step, "parameters": network.parameter_count(), "scores": scores, "training": {}}
        return Checkpoint(kind, self._about[kind] | known, blobs)


def restore(saved: Checkpoint, members: Members, streams: int) -> tuple[TrainState, StackState | None]:
    """Put the weights and moments of a `last` checkpoint back into the members.

    Args:
        saved: The checkpoint.
        members: Their optimizers' views of the weights stay where they are.
        streams: Of the global batch.

    Returns:
        Where the run stands, and the state of all streams; None before the first step.

    Raises:
        CheckpointError: Something is missing or has another shape.
    """
    load_weights(members.network, checkpoint.to_tensors(saved.part("model.")))
    progress = TrainState.from_meta(saved.meta["training"])
    try:
        for member in members.each:
            moments = checkpoint.to_tensors(saved.part(f"optimizer.{member.prefix}"))
            member.optimizer.restore(moments, progress.step)
        carried = checkpoint.to_tensors(saved.part("state."))
        return progress, _stack_state(carried, members.initial_state(streams)) if progress.step else None
    except torch.OutOfMemoryError:  # of the device, and no fault of the checkpoint
        raise
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint: its training state is not whole: {error}.") from None


def _stack_state(tensors: dict[str, Tensor], like: StackState) -> StackState:
    """Return a state from its tensors, by `LAYER.hidden` and `LAYER.cell`.

    Raises:
        KeyError: A part is missing or has another shape.
    """

    def part(name: str, expected: Tensor) -> Tensor:
        found = tensors.get(name)
        if found is None or found.shape != expected.shape:
            shape = "none" if found is None else tuple(found.shape)
            raise KeyError(f"state.{name}: expected {tuple(expected.shape)}, found {shape}")
        return found

    return tuple(
        LSTMState(*(part(f"{index}.{name}", expected) for name, expected in layer._asdict().items()))
        for index, layer in enumerate(like)
    )
