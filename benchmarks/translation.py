"""Our encoder-decoder and JoeyNMT's: one shape, the same tokens, the same minutes, on one machine.

    python benchmarks/translation.py multi30k DATA --joey PYTHON               # German to English, 3 minutes each
    python benchmarks/translation.py tatoeba DATA --joey PYTHON --minutes 10   # Chinese to English

DATA holds the folder multi30k or tatoeba-cmn-eng and is $TEXTWRIGHT_DATA if it is left out; PYTHON is an interpreter
with JoeyNMT 2.3 (`make .joey/ready`). One after the other, nothing else running.

Ours is its recipe, a Transformer, for these minutes. JoeyNMT gets the shape that ours chose and our pieces, written as
words of its vocabulary, so that a token and a softmax are the same for both (but for its four symbols). Its other
settings: AdamW at 1e-3 with a tenth of the updates to warm up, then 1 ÷ √updates; batches of 2,048 tokens; gradients
clipped at 1; dropout and label smoothing 0.1. Nobody looked for better ones. It keeps its last weights, ours those of
its best look.

It knows no budget of minutes: a short run before tells how many updates fit into them, and its row says how many they
took in the end. Its clock stands still while it is evaluated, ours does not. Both write the same sentences. JoeyNMT
reads a text anew for every token, so longer texts take longer by the token, too: mind how long its texts are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from tables import Row, keep, versions

from textwright.errors import TextwrightError
from textwright.evaluating.chrf import ChrF
from textwright.evaluating.translation import BLEU
from textwright.opening import load_pairs
from textwright.pair_model import PairModel
from textwright.recipes import read_recipe
from textwright.text.pairs import Pair, PairSource, read_pairs
from textwright.text.sides import texts_of
from textwright.training.state import newest, read_progress

RECIPES = {"multi30k": "multi30k-de-en", "tatoeba": "tatoeba-zh-en"}
HERE = Path(__file__).parent
TOLD = 20  # updates between lines of JoeyNMT's log
PROBE = 3 * TOLD  # updates that tell how long one takes
SIDES = "source", "target"
BEAMS = 5, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=RECIPES)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("TEXTWRIGHT_DATA", "../shared/data"))
    parser.add_argument("--joey", default=".joey/bin/python", help="an interpreter that has JoeyNMT")
    parser.add_argument("--minutes", type=float, default=3.0)
    asked = parser.parse_args()
    if not (Path(asked.joey).is_file() and versions("joeynmt", asked.joey)):
        raise SystemExit(f"{asked.joey} is no interpreter with JoeyNMT: make .joey/ready, or give --joey PYTHON")
    os.environ["TEXTWRIGHT_DATA"] = str(asked.data.resolve())
    recipe = HERE.parent / "recipes" / f"{RECIPES[asked.corpus]}.yaml"
    tested = [PairSource.parse(source, "test_pairs") for source in read_recipe(recipe).run["test_pairs"]]
    try:
        pairs = list(read_pairs(*tested))
    except TextwrightError as error:
        raise SystemExit(f"{error}\nGive the folder that holds it, or export TEXTWRIGHT_DATA.") from None
    with tempfile.TemporaryDirectory() as folder:
        own, model = ours(recipe, pairs, asked.minutes, Path(folder) / "run")
        print(own, flush=True)
        other = Joey(asked.joey, Path(folder) / "joey", model, Path(folder) / "run").contest(asked.minutes, pairs)
        print(other, flush=True)
    libraries = versions("joeynmt", asked.joey) | versions("sacrebleu")
    keep(f"translation-{asked.corpus}", [other, own], libraries, minutes=asked.minutes, sentences=len(pairs))


def ours(recipe: Path, pairs: Sequence[Pair], minutes: float, out: Path) -> tuple[Row, PairModel]:
    """Our row, and the model."""
    budget = f"training.budget.minutes={minutes}"
    command = [sys.executable, "-m", "textwright", "train", str(recipe), "--set", budget, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model = load_pairs(out)
    save = newest(out / "training")
    assert save is not None
    progress = read_progress(save)
    row: Row = {"who": "textwright", "precision": model.config.training.precision}
    row |= {"tokens/s": progress.tokens / progress.seconds, "updates": progress.step, "minutes": progress.seconds / 60}
    for beams in BEAMS:
        begin = time.perf_counter()
        texts = [group[0].text for group in model.write([pair.source for pair in pairs], beams=beams)]
        row |= written(texts, time.perf_counter() - begin, pairs, model, beams)
    return row, model


def written(texts: Sequence[str], seconds: float, pairs: Sequence[Pair], model: PairModel, beams: int) -> Row:
    """Speed and quality of the texts; tokens include the end."""
    tokens = sum(len(model.tokenizer.encode(text)) + 1 for text in texts)
    row: Row = {f"beam {beams}: tokens/s": tokens / seconds, f"beam {beams}: sentences/s": len(texts) / seconds}
    row[f"beam {beams}: tokens a text"] = tokens / len(texts)
    if beams > 1:
        references = [[pair.target, *pair.others] for pair in pairs]
        lowercase = bool(model.config.lowercase)
        row["BLEU"] = BLEU("en", lowercase=lowercase).corpus(texts, references).value
        row["chrF"] = ChrF(lowercase=lowercase).corpus(texts, references).value
    return row


class Joey:
    """JoeyNMT, as commands.

    Args:
        python: its interpreter.
        folder: for its files.
        model: whose shape and tokens it takes.
        run: of that model.
    """

    def __init__(self, python: str, folder: Path, model: PairModel, run: Path) -> None:
        self.python, self.folder, self.model = Path(python).absolute(), folder, model
        folder.mkdir()
        self.pieces = {"source": model.source_tokenizer, "target": model.tokenizer}
        known = [texts_of(run / "data", side) for side in SIDES]
        self._write("train", *known)
        self._write("dev", *([texts[0]] for texts in known))  # which it asks for
        for side, tokenizer in self.pieces.items():
            words = "".join(f"t{piece}\n" for piece in range(tokenizer.size))
            (folder / f"vocabulary.{side}").write_text(words, encoding="utf-8")

    def contest(self, minutes: float, pairs: Sequence[Pair]) -> Row:
        """Its row."""
        self._write("test", [pair.source for pair in pairs], [pair.target for pair in pairs])
        seconds, _ = pace(self._run("train", "probe", PROBE, after=100))
        updates = max(PROBE, round(60 * minutes / seconds / TOLD) * TOLD)  # it is evaluated, and saved, after the last
        seconds, rate = pace(self._run("train", "model", updates, after=updates // 10))
        row: Row = {"who": "JoeyNMT", "precision": "float32", "tokens/s": rate, "updates": updates}
        row["minutes"] = updates * seconds / 60
        for beams in BEAMS:
            log = self._run("test", "model", updates, after=updates // 10, beams=beams)
            took = float(re.findall(r"Generation took ([\d.]+)\[sec\]", log)[-1])
            row |= written(self._texts(), took, pairs, self.model, beams)
        return row

    def _write(self, split: str, sources: Sequence[str], targets: Sequence[str]) -> None:
        for side, texts in zip(SIDES, (sources, targets), strict=True):
            encode = self.pieces[side].encode
            lines = (" ".join(f"t{piece}" for piece in encode(text)) + "\n" for text in texts)
            (self.folder / f"{split}.{side}").write_text("".join(lines), encoding="utf-8")

    def _texts(self) -> list[str]:
        """What it wrote for the test."""
        lines = (self.folder / "written.test").read_text(encoding="utf-8").splitlines()
        return [
            self.model.tokenizer.decode([int(word[1:]) for word in line.split() if word != "<unk>"]) for line in lines
        ]

    def _run(self, verb: str, name: str, updates: int, *, after: int, beams: int = 1) -> str:
        """What it tells while it trains or writes."""
        config = self.folder / f"{name}-{verb}.yaml"
        config.write_text(yaml.safe_dump(self._config(name, updates, after, beams, verb)), encoding="utf-8")
        more = ["--skip-test"] if verb == "train" else ["--output-path", "written"]
        # Its checkpoints hold more than weights, which torch asks to be told.
        environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        command = [str(self.python), "-m", "joeynmt", verb, str(config), *more]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"JoeyNMT ended with an error:\n{done.stderr[-3000:]}")
        return (self.folder / name / f"{verb}.log").read_text(encoding="utf-8")

    def _config(self, name: str, updates: int, after: int, beams: int, verb: str) -> dict[str, Any]:
        shape = self.model.config.model
        side = {"level": "word", "max_length": 256}
        stack = {
            "type": "transformer",
            "num_layers": shape.layers,
            "num_heads": shape.heads,
            "hidden_size": shape.width,
            "ff_size": shape.inner or 4 * shape.width,
            "embeddings": {"embedding_dim": shape.width, "scale": True, "dropout": 0.0},
            "dropout": 0.1,
            "layer_norm": "pre",
        }
        data = {
            "train": "train",
            **({"dev": "dev"} if verb == "train" else {}),
            "test": "test",
            "dataset_type": "plain",
            "src": {"lang": "source", "voc_file": "vocabulary.source", **side},
            "trg": {"lang": "target", "voc_file": "vocabulary.target", **side},
        }
        training = {
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "learning_rate_min": 1e-9,
            "scheduling": "warmupinversesquareroot",
            "learning_rate_warmup": after,
            "clip_grad_norm": 1.0,
            "label_smoothing": 0.1,
            "normalization": "tokens",
            "batch_size": 2048,
            "batch_type": "token",
            "updates": updates,
            "epochs": 10_000,
            "logging_freq": TOLD,
            "validation_freq": updates,
            "early_stopping_metric": "loss",
            "print_valid_sents": [],
            "overwrite": True,
        }
        testing = {
            "beam_size": beams,
            "beam_alpha": 1.0,
            "batch_size": 64,
            "eval_metrics": [],
        }
        return {
            "name": name,
            "model_dir": name,
            "use_cuda": False,
            "random_seed": 0,
            "data": data,
            "training": training,
            "testing": testing,
            "model": {
                "initializer": "xavier_uniform",
                "embed_initializer": "xavier_uniform",
                "embed_init_gain": 1.0,
                "tied_embeddings": shape.source_vocab is None,
                "tied_softmax": True,
                "encoder": stack,
                "decoder": stack,
            },
        }


def pace(log: str) -> tuple[float, float]:
    """Seconds an update and target tokens a second, without the first update that is told of."""
    told = re.findall(r"^(\S+ \S+) - .*Step: +(\d+),.*Tokens per Sec: +(\d+)", log, re.MULTILINE)
    times = [datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f") for when, _, _ in told]
    steps = [int(step) for _, step, _ in told]
    rates = [int(rate) for _, _, rate in told[1:]]
    return (times[-1] - times[0]).total_seconds() / (steps[-1] - steps[0]), sum(rates) / len(rates)


if __name__ == "__main__":
    main()
