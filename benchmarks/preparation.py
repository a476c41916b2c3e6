"""How fast a text becomes token ids, and in how much memory, beside what the tokenizers library does on its own.

    python benchmarks/preparation.py            # a synthetic text of 0.2 GB, three rounds in turn
    python benchmarks/preparation.py --gb 5     # ours alone, and a short training: the memory counts

Every contestant is a process of its own. The library reads the file in batches of lines, learns a vocabulary of 8,000
pieces (BPE) from every fifth line, because ours learns from that share of such a text, reads it again and encodes it;
ours does that, splits the text, counts its words and writes what it found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from memory import peak

PIECES = 8000
SHARE = 5  # of the lines one in so many teaches the library: ours takes one piece in five of 200 million characters
BATCH = 2_000_000  # characters that the library gets at once


def synthetic(path: Path, size: int) -> None:
    """Sentences of made-up words, as frequent as those of a language (Zipf); about `size` bytes."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmwfgypbvk"))
    words = np.array(["".join(draw.choice(letters, length)) for length in draw.integers(2, 11, 60_000)])
    chances = 1 / np.arange(10, len(words) + 10)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            chosen = words[draw.choice(len(words), 400_000, p=chances / chances.sum())]
            lines = (" ".join(line) + ".\n" for line in chosen.reshape(-1, 20))
            written += file.write("".join(lines))


def batches(path: Path) -> Iterator[list[str]]:
    batch, size = [], 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            batch.append(line)
            size += len(line)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def library(path: Path, folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((batch[::SHARE] for batch in batches(path)), trainer)
    return sum(len(encoded.ids) for batch in batches(path) for encoded in tokenizer.encode_batch_fast(batch))


def ours(path: Path, folder: Path) -> int:
    from textwright.text.corpus import prepare
    from textwright.text.sources import SourceConfig
    from textwright.text.tokenizers import TokenizerConfig

    made = prepare(SourceConfig(path=str(path)), None, None, TokenizerConfig(kind="bpe", vocabulary=PIECES), folder)
    return sum(part.facts.tokens for part in made[:3])


def training(path: Path, folder: Path) -> int:
    import textwright

    settings = {"model.width": 256, "model.layers": 4, "tokenizer.vocabulary": PIECES}
    textwright.train(path, tokenizer="bpe", steps=200, out=folder, settings=settings)
    return 0


WORK = {"the tokenizers library": library, "textwright": ours, "textwright train, 200 steps": training}


def measured(who: str, path: Path) -> dict[str, float]:
    """A contestant in a process of its own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, __file__, "--child", who, str(path), f"{folder}/run"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        who, path, folder = sys.argv[2:]
        begin = time.perf_counter()
        tokens = WORK[who](Path(path), Path(folder))
        print(json.dumps({"seconds": time.perf_counter() - begin, "tokens": tokens, "peak GiB": peak()}))
        return
    from tables import keep, versions  # not in a contestant: it brings torch, whose memory would count

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=0.2)
    parser.add_argument("--folder", type=Path, help="where there is room for twice the text")
    asked = parser.parse_args()
    large = asked.gb > 1
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder) / "text.txt"
        synthetic(path, int(asked.gb * 1e9))
        size = path.stat().st_size / 1e6
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(1 if large else 3):
            for who in list(WORK)[2:] if large else list(WORK)[:2]:
                found.setdefault(who, []).append(measured(who, path))
                print(who, found[who][-1], flush=True)
    rows = []
    for who, results in found.items():
        seconds = statistics.median(result["seconds"] for result in results)
        most = max(result["peak GiB"] for result in results)
        rows.append({"who": who, "MB": size, "seconds": seconds, "MB/s": size / seconds, "peak GiB": most})
    keep(f"preparation{'-large' if large else ''}", rows, libraries=versions("tokenizers"))


if __name__ == "__main__":
    main()
