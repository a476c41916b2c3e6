"""TensorBoard logs hold the curves that the history holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import trainer

from textwright.training.callbacks import Listeners, TensorBoard


@pytest.mark.filterwarnings("default")  # the reader's own dependencies warn
def test_curves_are_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logs = TensorBoard(tmp_path / "logs")
    progress = trainer(tmp_path / "run", listener=Listeners(logs)).run()
    logs.writer.close()
    events = reader.EventAccumulator(str(tmp_path / "logs")).Reload()
    losses = [event.value for event in events.Scalars("loss/train")]
    assert losses == pytest.approx([record.loss for record in progress.steps])
    assert len(events.Scalars("loss/valid")) == len(progress.evaluations)
    assert "gradient_norm/blocks.0" in events.Tags()["scalars"]
