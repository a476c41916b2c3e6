"""Objective, schedules, checkpoints, hardware, forensics."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import MODELS, corpus

from textwright.errors import CheckpointError, ConfigError, TrainingError
from textwright.models import LSTMConfig
from textwright.text.batching import Batch, Cursor, Windows
from textwright.training import checkpoint, cross_entropy, hardware, objective
from textwright.training.forensics import blame
from textwright.training.gradients import layer
from textwright.training.objective import Objective
from textwright.training.optimizer import (
    AdamConfig,
    ConstantSchedule,
    CosineSchedule,
    InverseSqrtSchedule,
    LinearSchedule,
    PlateauSchedule,
    SGDConfig,
    WSDSchedule,
)
from textwright.training.sampled import Sampler
from textwright.training.settings import Budget


def batch() -> Batch:
    supply = Windows(corpus([30, 8, 5, 21]), 16, 64, 0, 0)
    return next(supply.batches(Cursor()))[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_by_hand(smoothing: float) -> None:
    torch.manual_seed(0)
    model, part = MODELS["lstm"].build().eval(), batch()
    subject = Objective(model, smoothing).train()
    model.eval()
    loss = subject(part)[0].detach()
    logprobs = model(part.tokens, part.lengths).logits.log_softmax(-1).detach()
    want = 0.0
    for row, length in enumerate(part.lengths.tolist()):
        for step in range(length):
            here = logprobs[row, step]
            want -= float((1 - smoothing) * here[part.targets[row, step]] + smoothing * here.mean())
    assert float(loss) == pytest.approx(want, rel=1e-5)


def test_smoothing_is_for_training_alone() -> None:
    model = MODELS["gru"].build().eval()
    plain, smooth = Objective(model).eval(), Objective(model, 0.3).eval()
    with torch.no_grad():
        assert float(plain(batch())[0]) == float(smooth(batch())[0])


def test_chunked_loss_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, part = MODELS["transformer"].model_copy(update={"dropout": 0.0}).build(), batch()
    subject = Objective(model)
    results = []
    for limit in (2**26, 12 * 7):
        for module in (objective, cross_entropy):
            monkeypatch.setattr(module, "CHUNK", limit)
        model.zero_grad()
        loss = subject(part).loss
        loss.backward()
        with torch.no_grad():
            quiet = subject(part).plain
        results.append((loss.detach(), quiet, *[p.grad.clone() for p in model.parameters()]))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


SCHEDULES = {
    "constant": ConstantSchedule,
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "inverse_sqrt": InverseSqrtSchedule,
    "wsd": WSDSchedule,
    "plateau": PlateauSchedule,
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules(kind: str) -> None:
    schedule, unwarmed = (SCHEDULES[kind](warmup=warmup) for warmup in (10, 0))
    curve = [schedule.share(step / 100, step + 1) for step in range(100)]
    flat = [unwarmed.share(step / 100, step + 1) for step in range(10)]
    if kind == "inverse_sqrt":
        flat = [1.0] * 10
    assert curve[:10] == pytest.approx([(step + 1) / 10 * flat[step] for step in range(10)])
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve[10:]))
    ends = {"constant": 1.0, "plateau": 1.0, "inverse_sqrt": math.sqrt(0.1)}
    assert schedule.share(1.0, 100) == pytest.approx(ends.get(kind, 0.05))
    if kind == "wsd":
        assert curve[79] == 1.0
        assert schedule.share(0.9, 91) == pytest.approx((1 + 0.05) / 2)


def test_a_warm_up_lasts_its_steps_however_short_the_time() -> None:
    """The first step of a short run may take a tenth of its time."""
    assert CosineSchedule(warmup=100).share(0.1, 2) < 0.02


@pytest.mark.parametrize(
    "config", [AdamConfig(weight_decay=0.3), AdamConfig(kind="adam", weight_decay=0.3), SGDConfig(weight_decay=0.3)]
)
def test_vectors_do_not_decay(config: AdamConfig | SGDConfig) -> None:
    optimizer = config.build(LSTMConfig(vocab=5, width=4).build())
    for group in optimizer.param_groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.3}


def test_exactly_one_budget() -> None:
    for wrong in ({}, {"minutes": 1.0, "steps": 3}):
        with pytest.raises(ConfigError, match="exactly one of minutes, steps and epochs"):
            Budget.parse(wrong)
    assert str(Budget(minutes=3.0)) == "3 minutes"


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save_tensors(path, checkpoint.weights(MODELS["lstm"].build()))
    return path


def test_weights_come_back(weights: Path) -> None:
    model = MODELS["lstm"].build()
    checkpoint.load_weights(model, weights)
    saved = checkpoint.load_tensors(weights)
    assert all(torch.equal(saved[name], value) for name, value in checkpoint.weights(model).items())
    assert "head.weight" not in saved  # tied: stored once, and still tied
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(weights: Path, keep: float) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        checkpoint.load_tensors(weights)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_one_changed_byte_is_noticed(weights: Path, place: float) -> None:
    data = bytearray(weights.read_bytes())
    data[int(place * len(data))] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        checkpoint.load_tensors(weights)


@pytest.mark.parametrize("head", [b"\x80\x04\x95", b"PK\x03\x04"])
def test_pickles_are_refused_by_name(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + b"rest of a pickle that would run code")
    with pytest.raises(CheckpointError, match="can run code and are refused"):
        checkpoint.load_tensors(path)


def test_weights_of_another_shape_are_named(weights: Path) -> None:
    other = LSTMConfig(vocab=12, width=20, layers=2).build()
    with pytest.raises(CheckpointError, match=r"cells\.0\.bias_hh_l0 is \(64,\), expected \(80,\)"):
        checkpoint.load_weights(other, weights)
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load_weights(MODELS["transformer"].build(), weights)


def test_foreign_safetensors_without_a_digest_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert checkpoint.load_tensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    checkpoint.write_json(path, {"old": 1})

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
        checkpoint.write_file(path, full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write_folder(tmp_path / "folder", lambda temporary: full(temporary / "a"))
    assert checkpoint.read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_weights_that_are_not_finite_are_never_saved() -> None:
    model = MODELS["gru"].build()
    model.embed.weight.data[3, 1] = math.inf
    with pytest.raises(TrainingError, match=r"parameter embed\.weight is not finite"):
        checkpoint.check_finite(model)


# forensics and hardware -----------------------------------------------------------------------------------------------


def test_the_first_bad_layer_is_named() -> None:
    model, tokens = MODELS["transformer"].build(), torch.zeros(1, 3, dtype=torch.long)
    assert blame(model, lambda: model(tokens)) == "the loss"
    model.blocks[1].feed_forward.up.register_forward_hook(lambda *_: torch.full((1, 3, 64), math.nan))
    assert blame(model, lambda: model(tokens)) == "output of layer blocks.1.feed_forward.up"
    model.blocks[0].norm1.weight.data[0] = math.inf
    assert blame(model, lambda: model(tokens)) == "weight blocks.0.norm1.weight"


def test_layers_of_parameters() -> None:
    assert layer("blocks.3.norm.weight") == "blocks.3"
    assert layer("embed.weight") == "embed"
    assert layer("position.table.weight") == "position"


def test_hardware_is_chosen_and_described() -> None:
    chosen = hardware.choose("cpu", "auto")
    assert chosen.precision in ("float32", "bfloat16")
    assert chosen.rate > 1e8
    assert hardware.choose("cpu", "float32").precision == "float32"
    with pytest.raises(ConfigError, match="cannot be used here"):
        hardware.pick_device("tpu")
    with pytest.raises(ConfigError, match="64-bit"):
        hardware.pick_device("mps")


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: has)
    with hardware.autocast(torch.device("cpu"), "bfloat16"):
        assert torch.is_autocast_enabled("cpu") is has
    if has:
        assert hardware.choose("cpu", "bfloat16").precision == "bfloat16"
    else:
        assert hardware.choose("cpu").precision == "float32"
        with pytest.raises(ConfigError, match=r"no instructions for products in bfloat16: .*float32"):
            hardware.choose("cpu", "bfloat16")


def test_keep_memory_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.keep_memory()
    monkeypatch.setattr(hardware.sys, "platform", "win32")
    hardware.keep_memory()


def test_a_sampler_with_every_word_is_exact_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    model, part = MODELS["gru"].model_copy(update={"dropout": 0.0}).build(), batch()
    vocabulary = model.head.out_features
    sampler = Sampler(torch.ones(vocabulary, dtype=torch.long), vocabulary)
    whole, estimated = Objective(model), Objective(model, sampler=sampler)
    torch.testing.assert_close(estimated(part).loss, whole(part).loss)
    fewer = Objective(model, sampler=Sampler(torch.ones(vocabulary, dtype=torch.long), 1))
    assert not torch.isclose(fewer(part).loss, whole(part).loss)
    torch.testing.assert_close(fewer.eval()(part).loss, whole.eval()(part).loss)  # an evaluation is never an estimate
