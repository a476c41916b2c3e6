"""Textwright (文匠): train, measure and explain text generators.

    import textwright
    model = textwright.train("my.txt", minutes=3)
    print(model.generate("Once upon a time")[0].text)

`textwright.load(folder)` opens a run that was trained before.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "finetune_pairs", "load", "train", "train_pairs"]

if TYPE_CHECKING:
    from textwright.api import finetune, finetune_pairs, load, train, train_pairs


def __getattr__(name: str) -> Any:
    # Lazily, because torch takes seconds to import and `textwright --help` should not.
    if name in ("finetune", "finetune_pairs", "load", "train", "train_pairs"):
        from textwright import api

        return getattr(api, name)
    raise AttributeError(f"module 'textwright' has no attribute {name!r}")
