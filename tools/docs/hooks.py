"""What mkdocs needs to show docs/ as GitHub does: links out of docs/, notebooks, anchors.

A file of the repository that a page links becomes a page under source/, since there is no public address yet.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

LINK = re.compile(r"\[([^][]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")  # a link's text, its target, and the anchor there

NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"


def slug(text: str, separator: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def linked_page(page: str, target: str) -> str | None:
    """Where the site has what a page links: a file outside of docs/, or a notebook. None: where GitHub has it."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path == "README.md":
        return "README.md"
    if path.endswith(".ipynb"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    if (path.startswith("docs/") and not path.endswith(".py")) or not (ROOT / path).is_file():
        return None
    return f"source/{path}.md"


def source_page(path: str) -> str:
    """A file of the repository as a page: Markdown as it is, anything else as code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return NOT_SEARCHED + re.sub(r"\]\((?!\w+:)[^)]*\)", "]", text)
    language = {".py": "python", ".yaml": "yaml", ".sh": "bash"}.get(Path(path).suffix, "text")
    return f"{NOT_SEARCHED}# {path}\n\n````{language}\n{text}\n````\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its cells, and what each printed or drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                lines = "".join(data["text/html"]).splitlines()  # an empty one would end the block of HTML
                parts.append(
                    "\n".join(
                        ['<div style="overflow-x: auto">', *(line.strip() for line in lines if line.strip()), "</div>"]
                    )
                )
            elif "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts)


def on_config(config: MkDocsConfig) -> None:
    """Give headings the anchors of GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each file outside of docs/ that a page links, one for each notebook, and a script for searches."""
    files.append(
        File.generated(
            config, "assets/iframe-worker.js", abs_src_path=str(Path(__file__).with_name("iframe-worker.js"))
        )
    )
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = notebook_page(json.loads(file.content_string))
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    linked = {
        linked_page(file.src_uri, target)
        for file in files.documentation_pages()
        for _, target, _ in LINK.findall(file.content_string)
    }
    for page in sorted(page for page in linked if page and page.startswith("source/")):
        files.append(
            File.generated(config, page, content=source_page(page.removeprefix("source/").removesuffix(".md")))
        )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ and to notebooks to the pages that `on_files` added; call pages by their titles."""
    here = posixpath.dirname(page.file.src_uri) or "."

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        moved = linked_page(page.file.src_uri, target)
        target = target if moved is None else posixpath.relpath(moved, here)
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(here, target)))
        title = (
            re.search(r"^# (.+)", file.content_string, re.MULTILINE)
            if file and file.is_documentation_page() and text == link[2]
            else None
        )
        return f"[{title[1] if title else text}]({target}{anchor or ''})"

    return LINK.sub(led, markdown)
