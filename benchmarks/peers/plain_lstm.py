"""The loop that tutorials show for torch.nn.LSTM: python plain_lstm.py lstm float32|bfloat16."""

import sys

import torch
from shapes import NEW, SHAPES, prompts, serve
from torch import nn

name, kind = sys.argv[1:]
shape = SHAPES[name]
torch.manual_seed(0)
dtype = getattr(torch, kind)
embed = nn.Embedding(shape.vocab, shape.width).to(dtype)
cells = nn.LSTM(shape.width, shape.width, shape.layers, batch_first=True).to(dtype)
head = nn.Linear(shape.width, shape.vocab).to(dtype)


@torch.no_grad()
def write(rows: int, beams: int) -> int | None:
    if beams > 1:
        return None
    out, state = cells(embed(torch.tensor(prompts(shape, rows))))
    token = head(out[:, -1:]).argmax(-1)
    for _ in range(NEW - 1):
        out, state = cells(embed(token), state)
        token = head(out).argmax(-1)
    return rows * NEW


serve(write)
