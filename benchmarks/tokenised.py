"""The literature's BLEU of Multi30k: both texts lower-cased and tokenised by Moses's rules, then counted as they are.

    textwright translate RUN --input test_2016_flickr.de > written.en
    python benchmarks/tokenised.py written.en test_2016_flickr.en en

Papers of the years before sacreBLEU tokenised the references themselves, so their figures compare with this one alone
(Post 2018). Needs `pip install sacremoses`, which nothing else here needs.
"""

import sys
from pathlib import Path

import sacrebleu
from sacremoses import MosesPunctNormalizer, MosesTokenizer


def tokenised(path: str, language: str) -> list[str]:
    """The lines of a file, normalised, tokenised and lower-cased, in the order of the data set's own scripts."""
    normalize, tokenize = MosesPunctNormalizer(language).normalize, MosesTokenizer(language).tokenize
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [tokenize(normalize(line.strip()), return_str=True, escape=False).lower() for line in lines]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python benchmarks/tokenised.py WRITTEN REFERENCE LANGUAGE")
    written, reference = (tokenised(path, sys.argv[3]) for path in sys.argv[1:3])
    if len(written) != len(reference):
        sys.exit(f"{len(written)} lines were written, the reference has {len(reference)}")
    metric = sacrebleu.BLEU(tokenize="none", lowercase=False, force=True)
    print(f"{metric.corpus_score(written, [reference]).score:.2f}  {metric.get_signature()}")
