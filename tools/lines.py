"""Counts the lines of the product code, by layer and kind of line. Comments count as code.

    python tools/lines.py [NAME ...]      taugrid, workers, eval and orchestrator, or these folders and files

docs/decisions.md, "The size of the code", has its numbers.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("taugrid", "workers", "eval", "orchestrator")
KINDS = ("code", "imports", "docstrings", "blank")


def kind_of(node: ast.AST) -> str:
    """The kind of a statement's lines; a text that stands alone documents what is above it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "imports"
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return "docstrings" if is_text else "code"


def counts(file: Path) -> Counter[str]:
    """The number of lines of each kind in a file."""
    text = file.read_text()
    kinds = ["code" if line.strip() else "blank" for line in text.splitlines()]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and (kind := kind_of(node)) != "code":
            last = node.end_lineno or node.lineno
            kinds[node.lineno - 1 : last] = [kind] * (last - node.lineno + 1)
    return Counter(kinds) + Counter(files=1, lines=len(kinds))


def main(names: list[str]) -> None:
    """Print a line for each of the folders or files, and their sum."""
    places = {name: ROOT / name for name in names}
    files = {name: [place] if place.is_file() else place.rglob("*.py") for name, place in places.items()}
    rows = {name: sum(map(counts, found), Counter()) for name, found in files.items()}
    columns = ("files", "lines", *KINDS)
    print(f"{'':26}", *(f"{column:>11}" for column in columns))
    for name, count in {**rows, "all": sum(rows.values(), Counter())}.items():
        print(f"{name:26}", *(f"{count[column]:11,}" for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:] or list(LAYERS))
