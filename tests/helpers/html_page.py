"""An HTML file parsed by the standard library."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "input"}


class Page(HTMLParser):
    """The elements of a page with their attributes and texts; fails on comments and unbalanced tags."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self.open: list[int] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.open and self.elements[self.open[-1]][0] == tag, (
            f"</{tag}> closes {self.open and self.elements[self.open[-1]]}"
        )
        self.open.pop()

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]}")

    def handle_data(self, data):
        for index in self.open:
            self.texts[index].append(data)

    def text(self, index: int) -> str:
        return "".join(self.texts[index])

    def all(self, tag: str, css: str = "") -> list[str]:
        """The text of every element with this tag and class."""
        return [
            self.text(index)
            for index, (name, attributes) in enumerate(self.elements)
            if name == tag and css in ["", *(attributes.get("class") or "").split()]
        ]

    def rows(self, css: str) -> list[list[str]]:
        """The cell texts of the table with this class, row by row."""
        rows: list[list[str]] = []
        inside = False
        for index, (tag, attributes) in enumerate(self.elements):
            if tag == "table":
                inside = css in (attributes.get("class") or "").split()
            elif inside and tag == "tr":
                rows.append([])
            elif inside and tag in ("th", "td"):
                rows[-1].append(self.text(index))
        return rows
