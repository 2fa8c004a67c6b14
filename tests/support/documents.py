"""The code blocks and links of the README and of docs/."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
#: The first line of a block that is a file: ``# tracker/__init__.py``.
FILE_NAME = re.compile(r"# ([\w./]+\.py)\n")
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    document: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file in the block's first line, or ``None``."""
        named = FILE_NAME.match(self.text)
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """README, CONTRIBUTING and the pages, relative to the project's root."""
    pages = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *pages]


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str | None = None, language: str | None = None) -> list[Block]:
    """The blocks of one document or of all, in order."""
    return [
        block
        for each in ([document] if document else documents())
        for block in _blocks_of(each)
        if language in (None, block.language)
    ]


def file_block(document: str, name: str) -> str:
    """The text of the block with that file's name."""
    (text,) = (block.text for block in blocks(document) if block.file == name)
    return text


def table(document: str, *titles: str) -> list[list[str]]:
    """The rows of the table with these first titles, a list of cells for each."""
    lines = text_of(document).splitlines()
    (start,) = (
        n for n, line in enumerate(lines) if _cells(line)[: len(titles)] == [*titles]
    )
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [*map(_cells, rows)]


def headings(document: str) -> set[str]:
    """The anchors of the document's headings, as GitHub makes them."""
    text = FENCE.sub("", text_of(document))
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in found}


def links(document: str) -> list[str]:
    return LINK.findall(FENCE.sub("", text_of(document)))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _blocks_of(document: str) -> list[Block]:
    text = text_of(document)
    return [
        Block(
            document,
            text.count("\n", 0, found.start()) + 1,
            found[2],
            textwrap.dedent(found[3]),
        )
        for found in FENCE.finditer(text)
    ]
