"""What needs no model: copying the source, its first sentence, the answer to the most similar source that is known.

A figure says little without them: on small data a nearest neighbour may well beat a network.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from textwright.evaluating.words import words
from textwright.progress import Told, untold

SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*|$)", re.DOTALL)
COMMON = 0.2  # words in more than this share of the sources tell nothing about which one it is


def copied(sources: Sequence[str]) -> list[str]:
    """Each source as it is."""
    return list(sources)


def leading(sources: Sequence[str]) -> list[str]:
    """The first sentence of each source: the baseline that news summaries rarely beat (Nenkova 2005)."""
    return [found[0].strip() if (found := SENTENCE.match(source.strip())) else source for source in sources]


def nearest(known: Sequence[str], targets: Sequence[str], sources: Sequence[str], progress: Told = untold) -> list[str]:
    """For each source the target of the known source that is most similar to it, the first of equals.

    Similarity is the cosine of word counts weighted by inverse document frequency (Salton and Buckley 1988).
    """
    counts = [Counter(words(text)) for text in known]
    frequency = Counter(word for count in counts for word in count)
    rarity = {word: math.log(len(known) / n) for word, n in frequency.items() if n <= max(1, COMMON * len(known))}
    index: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for place, count in enumerate(counts):
        for word, weight in _unit(count, rarity).items():
            index[word].append((place, weight))
    found = []
    for source in sources:
        found.append(targets[_best(_unit(Counter(words(source)), rarity), index)])
        progress(1)
    return found


def _best(source: dict[str, float], index: dict[str, list[tuple[int, float]]]) -> int:
    scores: dict[int, float] = defaultdict(float)
    for word, weight in source.items():
        for place, other in index.get(word, ()):
            scores[place] += weight * other
    return max(scores, key=lambda place: (scores[place], -place), default=0)


def _unit(count: Counter[str], rarity: dict[str, float]) -> dict[str, float]:
    weights = {word: n * rarity[word] for word, n in count.items() if word in rarity}
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    return {word: weight / length for word, weight in weights.items()}
