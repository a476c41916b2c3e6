"""A small exact task: numbers in digits and in words."""

from __future__ import annotations

from pathlib import Path

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def words(number: int) -> str:
    """A number below 10,000 as it is said."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    return f"{words(number // size)} {name}" + (f" {words(number % size)}" if number % size else "")


def write(folder: Path, count: int = 4000) -> dict[str, Path]:
    """Files train/test .digits and .words, and both sides as a table; every twentieth number is held out."""
    numbers = [number * 7919 % 10_000 for number in range(count)]
    files = {}
    for name, chosen in (("train", numbers[count // 20 :]), ("test", numbers[: count // 20])):
        for side, lines in (("digits", map(str, chosen)), ("words", map(words, chosen))):
            files[f"{name}.{side}"] = folder / f"{name}.{side}"
            files[f"{name}.{side}"].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files[f"{name}.tsv"] = folder / f"{name}.tsv"
        table = "".join(f"{number}\t{words(number)}\n" for number in chosen)
        files[f"{name}.tsv"].write_text(table, encoding="utf-8")
    return files
