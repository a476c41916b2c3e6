"""A realistic report made of invented numbers.

`python tests/reporting/test_example.py out.html [zh]` writes it to look at.
"""

from __future__ import annotations

import html
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from textwright.reporting import Chart, Code, Sample, Section, Series, bars, heatmap, lines, page, table

STEPS = list(range(0, 4000, 10))
LAYERS = ["embedding", *(f"layers.{index}" for index in range(8)), "norm", "head"]
CONFIGURATION = """\
model:
  family: transformer
  layers: 8
  width: 384
  heads: 6
training:
  steps: 4000
  batch: 32
  learning_rate: 0.0006
  schedule: cosine
seed: 1729
"""


def losses() -> Chart:
    noise = random.Random(0)
    train = [1.32 + 6.9 * math.exp(-step / 420) + noise.gauss(0, 0.05) for step in STEPS]
    valid = [1.49 + 6.6 * math.exp(-step / 430) + 2.2e-9 * max(step - 3200, 0) ** 2.6 for step in STEPS[::20]]
    curves = [Series("training", STEPS, train), Series("validation", STEPS[::20], valid)]
    return lines(curves, x="step", y="loss (nats per token)", title="Loss", marks=[(3400, "best: 1.492")])


def rates() -> Chart:
    rate = [6e-4 * min(step / 300, 0.5 + 0.5 * math.cos(math.pi * max(step - 300, 0) / 3700)) for step in STEPS]
    return lines([Series("learning rate", STEPS, rate)], x="step", y="learning rate", title="Learning rate")


def gradients() -> Chart:
    noise = random.Random(1)
    steps = STEPS[::4]
    norms = [
        [math.exp(-step / 900 - 0.35 * row + noise.gauss(0, 0.25)) + 0.01 for step in steps]
        for row in range(len(LAYERS))
    ]
    norms[4][30] = math.nan
    return heatmap(norms, LAYERS, steps, x="step", title="Gradient norm of each layer")


def english() -> str:
    panel = table(
        ["text", "tokens", "loss", "perplexity", "bits per byte"],
        [
            ["validation split", 48210, 1.4921, 4.4464, 0.9613],
            ["a novel, not in training", 120433, 1.8802, 6.5548, 1.2113],
            ["news", 51002, 2.7731, 16.0083, 1.7866],
            ["shuffled words", 50000, 6.1209, 455.2741, None],
        ],
        caption="How surprising other texts are",
    )
    speed = table(
        ["measure", "value"],
        [["parameters", "14.3 million"], ["peak memory", "1.9 GiB"], ["checkpoint", "57 MB"], ["precision", "bf16"]],
    )
    sections = [
        Section("Learning", [losses(), rates(), gradients()]),
        Section("Perplexity panel", ["Lower is better. Bits per byte survive a change of tokenizer.", panel]),
        Section(
            "Samples",
            [
                Sample("xq;Rh vvle,\noT\x00 'w aaK.. eent", "before training", "The sea "),
                Sample("was the and of the whale,\nand the sea of the ship was", "after 1,000 steps", "The sea "),
                Sample(
                    "lay like a sheet of beaten silver, and not a breath stirred the slack canvas above us.\n\n"
                    "“Well,” said the mate, “we shall have wind before the morning, or I am no sailor.”",
                    "after 4,000 steps\ntemperature 0.8",
                    "The sea ",
                ),
                Sample("春风又绿江南岸，\n明月何时照我还？", "the same model, prompted in Chinese", ""),
            ],
        ),
        Section("Speed and size", [bars(["training", "evaluation", "generation"], [48210.4, 120332.0, 812.7],
                                        unit="tokens per second", title="Throughput"), speed]),
        Section("Verdict", ["The model learned: validation loss fell from 8.1 to 1.49 and was still falling slowly at "
                            "step 3,400. After that it began to memorise; step 3,400 is the one kept.\n\n"
                            "More text would help more than more steps."]),
        Section("Configuration", [Code(CONFIGURATION, "The resolved configuration")]),
    ]  # fmt: skip
    facts: list[tuple[str, object]] = [
        ("validation loss", 1.4921), ("perplexity", 4.4464), ("bits per byte", 0.9613),
        ("parameters", "14.3 M"), ("tokens per second", 48210), ("minutes", 12.4),
    ]  # fmt: skip
    return page("A small Transformer reads Moby-Dick", "4,000 steps on 1.2 MB of text, one laptop", facts, sections)


def chinese() -> str:
    curves = [Series("训练", STEPS, [8 * math.exp(-step / 500) + 2 for step in STEPS]),
              Series("验证", STEPS, [8 * math.exp(-step / 520) + 2.2 for step in STEPS])]  # fmt: skip
    loss = lines(curves, x="步数", y="损失（每词元奈特）", title="损失", marks=[(3000, "最佳：2.21")])
    norms = heatmap([[1, 0.1], [0.01, 0.3]], ["词嵌入层", "输出层"], [1, 2], x="步数", title="各层梯度范数")
    sections = [
        Section("学习过程", [loss, norms]),
        Section("困惑度", [table(["文本", "困惑度"], [["验证集", 12.345], ["新闻", 45.6]])]),
        Section("样本", [Sample("，低头思故乡。\n床前明月光，疑是地上霜。", "训练之后", "举头望明月")]),
        Section("速度", [bars(["训练", "生成"], [1200, 340], unit="词元每秒", title="吞吐量")]),
    ]
    return page("小模型读唐诗", "四千步，一台笔记本电脑", [("验证损失", 2.21), ("困惑度", 9.1)], sections, "zh")


EXAMPLES = pytest.mark.parametrize("report", [english, chinese])


@EXAMPLES
def test_report_asks_the_network_for_nothing(report: Callable[[], str]) -> None:
    text = re.sub(r'data:image/png;base64,[^"]*', "data:", report())
    assert not re.findall(r"//(?!www\.w3\.org/(2000/svg|1999/xlink)\")", text)
    assert not re.search(r"<(script|iframe|object|embed)|@import|url\((?!#)|\son\w+=", text)
    assert set(re.findall(r'(?:href|src)="(.)', text)) <= {"#", "d"}


@EXAMPLES
def test_report_is_the_same_bytes_each_time(report: Callable[[], str]) -> None:
    assert report().encode() == report().encode()


@EXAMPLES
def test_report_is_small(report: Callable[[], str]) -> None:
    assert len(report().encode()) < 150_000


def test_report_says_what_it_was_given() -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", english()))
    for words in ["A small Transformer", "48,210", "16.008", "above us.\n\n“Well,”", "best: 1.492", "width: 384"]:
        assert words in text
    assert '<html lang="zh">' in chinese()


def test_chinese_is_text_in_the_charts() -> None:
    text = chinese()
    for words in ["步数", "损失（每词元奈特）", "最佳：2.21", "词嵌入层", "词元每秒"]:
        assert re.search(rf"<text[^>]*>{words}</text>", text)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(chinese() if "zh" in sys.argv else english(), encoding="utf-8")
