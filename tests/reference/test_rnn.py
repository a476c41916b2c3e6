"""Recurrent families against the written formulas in float64 and against `torch.nn` with the same weights."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from textwright.models import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.rnn import RecurrentConfig, RecurrentLM

ROWS, TIME, VOCAB, WIDTH, LAYERS = 3, 6, 11, 8, 2
CONFIGS = {
    "rnn": RNNConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS),
    "relu": RNNConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, nonlinearity="relu"),
    "gru": GRUConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS),
    "lstm": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, tied=False),
}
NARROW = {
    "rnn": RNNConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, embedding_width=5),
    "gru": GRUConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5),
    "lstm": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, embedding_width=11, tied=False),
    "rnn-part": RNNConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, embedding_width=7, input_width=4),
}


def built(config: RecurrentConfig) -> tuple[RecurrentLM, Tensor]:
    torch.manual_seed(1)
    model = config.build().double().eval()
    for parameter in model.parameters():  # biases too: a formula that forgets one must fail
        nn.init.normal_(parameter, std=0.5)
    return model, torch.randint(0, VOCAB, (ROWS, TIME))


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest):
    return request.param, *built(CONFIGS[request.param])


def test_written_formulas(case) -> None:
    kind, model, tokens = case
    torch.testing.assert_close(model(tokens).logits, by_formula(kind, model, tokens))


@pytest.mark.parametrize("kind", NARROW)
def test_written_formulas_where_words_have_a_width_of_their_own(kind: str) -> None:
    model, tokens = built(NARROW[kind])
    assert isinstance(model.project, nn.Linear)
    hidden = by_formula(kind.removesuffix("-part"), model, tokens, head=False)
    want = hidden @ model.project.weight.T @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(tokens).logits, want)
    assert model.embed.weight.shape == (VOCAB, NARROW[kind].embedding_width)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_written_formulas_where_a_part_of_a_word_is_read(kind: str) -> None:
    model, tokens = built(CONFIGS[kind].model_copy(update={"input_width": 3, "tied": True}))
    torch.testing.assert_close(model(tokens).logits, by_formula(kind, model, tokens))
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (VOCAB, WIDTH)
    assert model.cells[0].input_size == 3


def test_a_part_of_a_word_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"input_width 9 is more than a token's vector has, 8"):
        LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, input_width=9)
    with pytest.raises(ValidationError, match="input_width 6 is more than a token's vector has, 5"):
        GRUConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5, input_width=6)
    with pytest.raises(ValidationError, match="set embedding_width instead"):
        RNNConfig(vocab=VOCAB, width=WIDTH, layers=1, input_width=4, tied=False)


def test_torch_nn_with_the_same_weights(case) -> None:
    kind, model, tokens = case
    stack = {"rnn": nn.RNN, "relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind]
    more = {"nonlinearity": kind if kind == "relu" else "tanh"} if stack is nn.RNN else {}
    reference = stack(WIDTH, WIDTH, LAYERS, batch_first=True, **more).double()
    for layer, cell in enumerate(model.cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(reference, f"{name}_l{layer}").data.copy_(getattr(cell, f"{name}_l0"))
    hidden, _ = reference(model.embed(tokens))
    torch.testing.assert_close(model(tokens).logits, hidden @ model.head.weight.T + model.head.bias)


def by_formula(kind: str, model: nn.Module, tokens: Tensor, head: bool = True) -> Tensor:
    """The docstring of models/rnn.py, one line at a time."""
    x = model.embed.weight[tokens][..., : model.cells[0].input_size]
    for cell in model.cells:
        W, U, b, c = (getattr(cell, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = memory = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
        outputs = []
        for step in range(TIME):
            h, memory = STEPS[kind](x[:, step], h, memory, W, U, b, c)
            outputs.append(h)
        x = torch.stack(outputs, 1)
    return x if not head else x @ model.head.weight.T + model.head.bias


def elman(x, h, memory, W, U, b, c):
    return torch.tanh(W @ x.T + U @ h.T + (b + c)[:, None]).T, memory


def relu(x, h, memory, W, U, b, c):
    return torch.relu(W @ x.T + U @ h.T + (b + c)[:, None]).T, memory


def gru(x, h, memory, W, U, b, c):
    W_r, W_z, W_n = W.chunk(3)
    U_r, U_z, U_n = U.chunk(3)
    (b_r, b_z, b_n), (c_r, c_z, c_n) = b.chunk(3), c.chunk(3)
    r = torch.sigmoid(x @ W_r.T + b_r + h @ U_r.T + c_r)
    z = torch.sigmoid(x @ W_z.T + b_z + h @ U_z.T + c_z)
    n = torch.tanh(x @ W_n.T + b_n + r * (h @ U_n.T + c_n))  # the reset gate after the product
    return (1 - z) * n + z * h, memory  # z keeps the old state


def lstm(x, h, memory, W, U, b, c):
    i, f, g, o = (x @ W.T + h @ U.T + b + c).chunk(4, -1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


STEPS = {"rnn": elman, "relu": relu, "gru": gru, "lstm": lstm}
