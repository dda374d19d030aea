"""The script that sets an LSTM beside a tanh RNN: its gradients are right, and it ends with its tables."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import nats
from tests.helpers import some_ids


def load() -> Any:
    """Import the script, which lies outside the package."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "experiments" / "reach_rnn.py"
    spec = importlib.util.spec_from_file_location("reach_rnn", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reach_rnn: Any = load()


def test_the_rnn_is_stepped_as_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient k steps back, found step by step, is that of nudging the state there and running `torch.nn.RNN` on."""
    monkeypatch.setattr(reach_rnn, "LENGTH", 6)
    monkeypatch.setattr(reach_rnn, "PREDICTIONS", 1)
    model, ids = reach_rnn.PlainRNN(5, 11, orthogonal=True).double().requires_grad_(False), some_ids(8)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the one-hot input, for differences that mean something
    by_state, by_input = reach_rnn.reach_of_rnn(model, ids)
    zeros = torch.zeros(1, 5, dtype=torch.float64)
    for k in (1, 4):
        last = 6 - k
        _, (before,) = model(ids[:last, None], (LSTMState(zeros, zeros),))
        slopes = []
        for unit in range(5):
            values = []
            for by in (1e-5, -1e-5):
                hidden = before.hidden.clone()
                hidden[0, unit] += by
                logits, _ = model(ids[last:6, None], (LSTMState(hidden, hidden),))
                values.append(float(nats(logits[-1:], ids[6:7, None])))
            slopes.append((values[0] - values[1]) / 2e-5)
        assert by_state[k] == pytest.approx(float(torch.tensor(slopes, dtype=torch.float64).norm()), rel=1e-5)
    assert len(by_state) == len(by_input) == 6


def test_the_script_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are trained and measured, by name, distance and blank."""
    reach_rnn.main(["--steps", "2", "--hidden", "5", "--batch", "2", "--window", "9", "--blanks", "24"])
    told = capsys.readouterr().out

    for line in ("LSTM, C ", "LSTM, H ", "LSTM, x ", "tanh RNN, h ", "tanh RNN, x ", "350-399 "):
        assert line in told
    assert told.count("last tenth") == 2


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    """A text too short for the distances is refused in words."""
    (tmp_path / "short.txt").write_text("Bob is here. " * 9)
    with pytest.raises(SystemExit, match="expected 2,020 characters"):
        reach_rnn.main(["--text", "short.txt"])
