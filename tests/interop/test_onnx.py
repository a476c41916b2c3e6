"""Steps of recurrent models in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from textwright.errors import CheckpointError
from textwright.interop.onnx_step import check_step, write_step
from textwright.models import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.rnn import RecurrentConfig, RecurrentLM

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
FAMILIES: dict[str, RecurrentConfig] = {
    "lstm": LSTMConfig(vocab=30, width=16, layers=2),
    "gru": GRUConfig(vocab=30, width=16, layers=1, tied=False),
    "lstm-narrow-words": LSTMConfig(vocab=30, width=16, layers=1, embedding_width=6, input_width=4),
    "rnn": RNNConfig(vocab=30, width=16, layers=2),
    "rnn-relu": RNNConfig(vocab=30, width=16, layers=1, nonlinearity="relu"),
}
TEXTS = [[1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12]]


def build(family: str, seed: int) -> RecurrentLM:
    torch.manual_seed(seed)
    model = FAMILIES[family].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that a wrong gate shows, and rounding does not grow to more than it is
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_and_writes_the_same(family: str, tmp_path: Path) -> None:
    model = build(family, 0)
    write_step(tmp_path / "model.onnx", model)
    tokens, _ = check_step(tmp_path / "model.onnx", model, TEXTS, 20)
    assert tokens == 3 * 23
    with pytest.raises(CheckpointError, match="differs after 1 tokens"):
        check_step(tmp_path / "model.onnx", build(family, 1), TEXTS, 20)
