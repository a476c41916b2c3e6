"""Who may import whom: the design's floors, read from the import statements."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "textwright"
FLOORS = {
    "errors": 0,
    "config": 0,
    "noise": 0,
    "progress": 0,
    "text": 1,
    "models": 1,
    "reporting": 1,
    "decoding": 2,
    "training": 2,
    "insight": 2,
    "adapting": 2,
    "evaluating": 3,
    "study": 3,
    "serving": 3,
    "interop": 3,
}
TOP = 4
SAME_FLOOR = {("config", "errors"), ("adapting", "training"), ("study", "evaluating")}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Rooms of ours that a file imports, also inside functions and for types alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {
                f"{node.module}.{alias.name}" if node.module == "textwright" else node.module for alias in node.names
            }
    return {name.split(".")[1] for name in names if name.startswith("textwright.")}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    floor = FLOORS.get(here, TOP)
    for other in imported(path) - {here}:
        below = FLOORS.get(other, TOP) < floor
        assert below or floor == TOP or (here, other) in SAME_FLOOR, f"{here} (floor {floor}) imports {other}"


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("__pycache__", "cli")}
    assert rooms <= FLOORS.keys()


def test_decoding_never_sees_a_tokenizer_nor_models_an_optimiser() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if room(path) == "decoding":
            assert "textwright.text" not in text, path
        if room(path) == "models":
            assert "torch.optim" not in text, path
            assert "torch.distributed" not in text, path


def test_nothing_reads_pickles() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text, path
        assert "torch.load(" not in text, path
