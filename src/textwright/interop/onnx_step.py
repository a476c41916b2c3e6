"""One step of a recurrent model as ONNX, for any run-time that reads it.

    logits, state' = step(token, state)

    token   (rows,) int64          hidden, and for the LSTM cell   (rows, layers, width) float32, zeros before any token
    logits  (rows, vocab)          hidden_after, cell_after        the same

A text is written by feeding its tokens one by one, and then what was chosen from the last logits.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textwright.errors import CheckpointError, MissingExtraError
from textwright.models.rnn import LSTMConfig, RecurrentLM, step

CLOSE = 1e-4  # of the largest logit


class Step(nn.Module):
    """The formulas in `models.rnn`, one step of all layers."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x, after = self.model.embed(token)[..., : self.model.config.read], []
        for layer, cell in enumerate(self.model.cells):
            assert isinstance(cell, nn.RNNBase)
            after.append(step(cell, x, tuple(leaf[:, layer] for leaf in state)))
            x = after[-1][0]
        return self.model.head(self.model.project(x)), *(torch.stack(leaves, 1) for leaves in zip(*after, strict=True))


def write_step(path: Path, model: RecurrentLM) -> None:
    """Write the file.

    Raises:
        MissingExtraError: the packages onnx and onnxscript are not installed.
    """
    for package in ("onnx", "onnxscript"):
        try:
            import_module(package)
        except ImportError:
            raise MissingExtraError("writing ONNX", "onnx") from None
    names = leaf_names(model)
    leaves = [torch.zeros(2, model.config.layers, model.config.width) for _ in names]
    rows = torch.export.Dim("rows", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            Step(model).eval(),
            (torch.zeros(2, dtype=torch.long), *leaves),
            dynamo=True,
            verbose=False,
            input_names=["token", *names],
            output_names=["logits", *(f"{name}_after" for name in names)],
            dynamic_shapes=({0: rows}, tuple({0: rows} for _ in leaves)),
        )
    assert program is not None
    program.save(str(path), external_data=False)


def check_step(path: Path, model: RecurrentLM, texts: Sequence[Sequence[int]], new: int) -> tuple[int, float]:
    """Let onnxruntime read texts and go on greedily, all in one batch, and compare with the model.

    Args:
        texts: token ids.
        new: tokens to write after each.

    Returns:
        how many tokens were compared, and the largest difference of a logit.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        CheckpointError: logits or texts differ.
    """
    try:
        library: Any = import_module("onnxruntime")
    except ImportError:
        raise MissingExtraError("an export to ONNX, which is checked by running it,", "onnx") from None
    session = library.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = leaf_names(model)
    shortest = min(len(text) for text in texts)
    rows = torch.tensor([list(text[:shortest]) for text in texts])
    zeros = torch.zeros(len(rows), model.config.layers, model.config.width)
    state, own = {name: zeros.numpy() for name in names}, model.begin(len(rows))
    difference, largest = 0.0, 1.0
    token = rows[:, 0]
    for place in range(shortest + new):
        logits, *after = session.run(None, {"token": token.numpy(), **state})
        state = dict(zip(names, after, strict=True))
        with torch.no_grad():
            output = model(token[:, None], state=own)
        own, mine, theirs = output.after, output.logits[:, 0], torch.from_numpy(logits)
        difference = max(difference, float((mine - theirs).abs().max()))
        largest = max(largest, float(mine.abs().max()))
        likeliest = theirs.argmax(-1)
        behind = mine.amax(-1) - mine.gather(1, likeliest[:, None])[:, 0]  # 0, or what rounding makes of equal ones
        if max(difference, float(behind.max())) > CLOSE * largest:
            raise CheckpointError(f"the exported step differs after {place + 1} tokens, logits by {difference:.2g}")
        token = rows[:, place + 1] if place + 1 < shortest else likeliest
    return len(rows) * (shortest + new), difference


def leaf_names(model: RecurrentLM) -> list[str]:
    """What the model remembers."""
    return ["hidden", "cell"] if isinstance(model.config, LSTMConfig) else ["hidden"]
