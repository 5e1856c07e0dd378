"""README and docs/ as their readers see them: pages, links, anchors, blocks of code."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|(?<=\n\n))((?: {4}[^\n]*\n(?:\n+(?= {4}))?)+)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def mentioned(page: Path, program: str = "taugrid") -> list[str]:
    """The commands that sentences of a page name; they may lack arguments."""
    text = INDENTED.sub("", FENCED.sub("", page.read_text()))
    return [" ".join(span.split()) for span in re.findall(rf"`({program}\s[^`]+)`", text)]


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures, in Markdown and in HTML."""
    shown = re.sub(r"`[^`\n]*`", "", INDENTED.sub("", FENCED.sub("", text)))  # without its code
    return re.findall(r"\]\(([^)\s]+)\)", shown) + re.findall(r'(?:src|href)="([^"]+)"', shown)


def anchors(text: str) -> list[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)", "", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


class Block(NamedTuple):
    page: str
    language: str
    """Of a fenced block; empty for an indented one."""
    text: str


def blocks() -> list[Block]:
    """Every block of code of every page."""
    found = []
    for page in PAGES:
        text = page.read_text()
        found += [Block(name(page), language, block) for language, block in FENCED.findall(text)]
        indented = INDENTED.findall(FENCED.sub("", text))
        found += [Block(name(page), "", textwrap.dedent(block)) for block in indented]
    return found


def commands(block: Block, program: str = "taugrid") -> list[str]:
    """A program's command lines in a block, without comments and with continued lines joined."""
    lines = re.sub(r" *\\\n *", " ", block.text).splitlines()
    return [re.split(r"\s#", line)[0].strip() for line in lines if line.startswith(f"{program} ")]
