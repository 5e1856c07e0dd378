"""Makes the pictures of docs/tour.md from a finished run, with Chromium: the terminal, the report and the board.

python -m tools.docs.pictures RUNS/RUN writes docs/images/{terminal,report,board}.png. The board is that of RUNS. RUN is
"mine", as in the tour, and so is the name in its config.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from tools.browser import page

ROOT = Path(__file__).parents[2]

IMAGES = ROOT / "docs/images"
SIZES = {"terminal": (1000, 450), "report": (1100, 1000), "board": (1500, 1200)}
"""Width and height of the windows, in pixels."""
PICKED = (0, 1, 3)  # the rows of the board that are picked: of the demo, S = 10 and 20 at eta = 0, and S = 10 at 0.5
IMAGES_ARE_THERE = "Promise.all([...document.images].map((image) => image.decode().catch(() => null)))"
STYLE = "padding: 20px; color: #e6e6e6; font: 15px/1.4 monospace"
TERMINAL = f'<meta charset="utf-8"><body style="margin: 0; background: #16181d"><pre style="{STYLE}">{{code}}</pre>'


SIGMA_HAT = "σ̂"
WITH_ITS_HAT = f'<span style="display: inline-block; width: 1ch; font-family: DejaVu Sans">{SIGMA_HAT}</span>'
"""In monospace, Chromium draws the hat beside the letter."""


def taugrid(folder: Path, *words: str | Path) -> str:
    """What a command prints on a terminal in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "COLUMNS": "96"}
    command = [sys.executable, "-m", "taugrid", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def terminal_page(run: Path) -> str:
    """The first table that `taugrid run` prints at its end, what it is of, and where everything is."""
    printed = taugrid(run.parent, "report", run.name).replace(str(run.parent), "/home/me/runs")
    last = [line for line in printed.splitlines() if re.match(r"N = |\w+: +/home", line)]
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(Text.from_ansi("\n".join(["$ taugrid run my.yaml", printed.partition("\n\n")[0], "", *last])))
    return console.export_html(inline_styles=True, code_format=TERMINAL).replace(SIGMA_HAT, WITH_ITS_HAT)


def main(run: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "terminal.html").write_text(terminal_page(run))
        taugrid(run.parent.parent, "board", run.parent.name, "--to", folder / "site")
        shown = {
            "terminal": folder / "terminal.html",
            "report": run / "report.html",
            "board": folder / "site/index.html",
        }
        with page(folder / "browser") as tab:
            for picture, path in shown.items():
                tab.events.clear()
                tab.open(path, *SIZES[picture])
                for row in PICKED if picture == "board" else ():
                    tab.run(f"document.querySelectorAll('tbody input')[{row}].click()")
                tab.run(IMAGES_ARE_THERE)
                tab.picture(folder / "whole.png")
                image = Image.open(folder / "whole.png").convert("RGB")
                image = image.crop((0, 0, image.width, min(image.height, SIZES[picture][1])))
                image.save(IMAGES / f"{picture}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
