"""A character language model that lstmlm has exported: load it, read and write with it. It needs torch and safetensors alone.

    python THIS_FILE "Once upon"           writes 500 characters after these words

    model = load("stories.safetensors")
    logits, state = model(torch.tensor(model.encode("Bob is"))[:, None])    # (T, 1) ids -> (T, 1, V) logits

The weights lie in the .safetensors file of this file's name; what they are, and the vocabulary, is JSON in its header. Where that
says "separator", the ids that part documents, begin again behind them: call the model on the next document with no state.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

State = list[list[tuple[Tensor, Tensor]]]
"""(hidden, cell), each (1, B, S), of every layer of every network; behind those of a network whose header says "pairs", the pairs
of ids that have rows of their own in its tables, the last ids (1, B), twice."""


class Network(nn.Module):
    """One-hot characters -> LSTM layers -> the logits of the next character."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about
        vocabulary, widths, pairs = about["vocabulary"], about["widths"], about.get("pairs", [])
        self.pairs = [vocabulary * first + second for first, second in pairs]  # ascending
        self.rows = vocabulary + len(pairs)
        inputs = [self.rows, *widths[:-1]]
        normed = widths[:-1] if about["readout"] == "direct" else widths  # what is read out directly is the hidden state itself
        self.lstms = nn.ModuleList(nn.LSTM(i, width, bias=about["bias"]) for i, width in zip(inputs, widths, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if about["layer_norm"] else nn.Identity() for width in normed)
        self.readout = nn.Linear(widths[-1], vocabulary) if about["readout"] == "linear" else nn.Identity()
        self.M = nn.Parameter(torch.zeros(self.rows, widths[0])) if about["multiplicative"] else None

    def forward(self, ids: Tensor, state: list[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Read ids (T, B) after a state; return logits (T, B, V) and the state after them."""
        rows = self.read(ids, state)
        x = nn.functional.one_hot(rows, self.rows).to(next(self.parameters()).dtype)
        after = []
        for index, lstm in enumerate(self.lstms):
            before = state[index] if state else None
            y, last = lstm(x, before) if index or self.M is None else self.multiplicative(rows, x, before)
            after.append(last)
            if index < len(self.norms):
                y = self.norms[index](y)
            x = x + y if self.about["residual"] and 0 < index < len(self.norms) else y
        return self.readout(x), [*after, *([(ids[-1:], ids[-1:])] if self.pairs else [])]

    def read(self, ids: Tensor, state: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Return the rows of the tables for ids (T, B): of a pair of two ids that has one, of the id alone elsewhere."""
        if not self.pairs:
            return ids
        before = torch.cat([state[-1][0] if state else torch.full_like(ids[:1], -1), ids[:-1]])
        keys, wanted = torch.tensor(self.pairs, device=ids.device), before * self.about["vocabulary"] + ids
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[place] == wanted, place + self.about["vocabulary"], ids)

    def multiplicative(
        self, rows: Tensor, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read with the first layer step by step: in front of each, the hidden state is multiplied by 1 + M[row]."""
        assert self.M is not None
        hidden, cell = state or [x.new_zeros(1, rows.shape[1], self.M.shape[1])] * 2
        every = []
        for x_t, scale in zip(x, 1 + self.M[rows], strict=True):
            _, (hidden, cell) = self.lstms[0](x_t[None], (hidden * scale, cell))
            every.append(hidden)
        return torch.cat(every), (hidden, cell)


class Model(nn.Module):
    """One network, or the mean of the probabilities of several; with its vocabulary."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about
        self.members = nn.ModuleList(Network(about) for _ in range(about["members"]))

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read ids (T, B) after a state, or from the beginning; return logits (T, B, V) and the state after them."""
        read = [member(ids, state[k] if state else None) for k, member in enumerate(self.members)]
        if len(read) == 1:
            return read[0][0], [read[0][1]]
        mean = torch.stack([logits.log_softmax(-1) for logits, _ in read]).logsumexp(0) - math.log(len(read))
        return mean, [after for _, after in read]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Of a model of bytes they are the bytes of its UTF-8; others know only their characters, or
        have an id for all others.

        Raises:
            ValueError: A character is none of them.
        """
        if self.about["symbols"] is None:
            return list(text.encode())
        ids = {char: id_ for id_, char in enumerate(self.about["symbols"])}
        rare: Any = self.about.get("rare")
        if (unknown := sorted(set(text) - set(ids))) and rare is None:
            raise ValueError(f"text: expected characters that the model knows, found {', '.join(map(ascii, unknown))}.")
        return [ids.get(char, rare) for char in text]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        symbols = self.about["symbols"]
        return bytes(ids).decode(errors="replace") if symbols is None else "".join(symbols[id_] for id_ in ids)

    @torch.inference_mode()
    def write(self, prompt: str, length: int = 500, temperature: float = 1.0) -> str:
        """Go on after a prompt, which is at least one character; behind what parts documents from no state."""
        ids, parts = self.encode(prompt), self.about.get("separator")
        begun = len(ids)
        logits, state = self(torch.tensor(ids)[:, None])
        for _ in range(length):
            if parts and ids[-len(parts) :] == parts:
                state = None
            ids.append(int(torch.multinomial((logits[-1, 0] / temperature).softmax(-1), 1)))
            logits, state = self(torch.tensor([ids[-1:]]), state)
        return self.decode(ids[begun:])


def load(path: str | Path) -> Model:
    """Return the model in a file, in evaluation mode."""
    with safe_open(path, "pt") as file:
        model = Model(json.loads(file.metadata()["model"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # it is no dictionary
    return model.eval()


if __name__ == "__main__":
    model = load(Path(__file__).with_suffix(".safetensors"))
    symbols = model.about["symbols"] or "\n"
    words = " ".join(sys.argv[1:]) or ("\n" if "\n" in symbols else symbols[0])
    try:
        print(words + model.write(words), flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever reads has seen enough; nothing may be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
