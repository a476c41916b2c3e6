"""Hugging Face Trainer on nanoGPT's small shape: python trainer.py TOKENS.pt SECONDS; prints the curve as JSON.

TOKENS.pt holds (training ids, validation ids, vocabulary, id of the end). The number of steps, which the schedule must
know beforehand, comes from the speed of a first short run; the clock stands still during evaluations.
"""

import json
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
BLOCK, BATCH, LOOKS, TRIAL = 64, 12, 8, 64
# GELU by torch's function, not written out in Python; no dropout.
PLAIN = {"activation_function": "gelu", "use_cache": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Windows(torch.utils.data.Dataset):
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids) - BLOCK

    def __getitem__(self, place):
        row = self.ids[place : place + BLOCK + 1]
        return {"input_ids": row[:-1], "labels": row[1:]}


class NextToken(Trainer):
    """The labels are shifted already."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["input_ids"]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
        return (loss, logits) if return_outputs else loss


class Looks(TrainerCallback):
    def __init__(self, ids, end, steps):
        count = len(ids) // BLOCK
        shifted = torch.cat([torch.tensor([end]), ids])
        self.inputs, self.rows = (x[: count * BLOCK].view(count, BLOCK) for x in (shifted, ids))
        self.every, self.spent, self.curve = max(1, steps // LOOKS), 0.0, []

    def on_train_begin(self, args, state, control, **more):
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **more):
        if state.global_step % self.every == 0:
            self.spent += time.perf_counter() - self.begin
            self.curve.append((self.spent, self.loss(model)))
            self.begin = time.perf_counter()

    @torch.no_grad()
    def loss(self, model):
        model.eval()
        total = sum(
            float(F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), reduction="sum"))
            for x, y in zip(self.inputs.split(128), self.rows.split(128), strict=True)
        )
        model.train()
        return total / self.rows.numel()


def run(train, valid, vocabulary, end, steps):
    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": BLOCK, "vocab_size": vocabulary}
    model = GPT2LMHeadModel(GPT2Config(**shape, **PLAIN))
    looks = Looks(valid, end, steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-3, adam_beta2=0.99,
            weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=100, report_to=[], save_strategy="no",
            disable_tqdm=True, use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        NextToken(model=model, args=arguments, train_dataset=Windows(train), callbacks=[looks]).train()
    return looks


texts = torch.load(sys.argv[1])
trial = run(*texts, TRIAL)
seconds = float(sys.argv[2])
print(json.dumps(run(*texts, int(seconds / (trial.curve[-1][0] / TRIAL))).curve))
