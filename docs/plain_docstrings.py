"""Convert plain-text docstrings to reStructuredText for Sphinx, so that authors need not know its rules."""

import re
from collections.abc import Iterator, Sequence

FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): ")
FIELD_WITHIN = re.compile(r"(?<=[.)]) (?=[a-z_]\w*(?:, [a-z_]\w*)*: )")
RETURNS = re.compile(r"(Returns|Raises|PrunusError) ")


def to_rst(lines: Sequence[str]) -> list[str]:
    """The lines as reStructuredText: paragraphs, literal blocks, and lists.

    Lines `name: what it is` and items with a hanging indent become list items.
    """
    found: list[str] = []
    for block in blocks(lines):
        if all(line.startswith("    ") for line in block):
            found += ["::", "", *block, ""]
            continue
        for item in items(block):
            text = " ".join(line.strip() for line in item)
            if field := FIELD.match(text):
                found += [f"- **{escape(field[1])}**: {escape(text[field.end() :])}", ""]
            elif len(item) > 1 and item[1].startswith(" "):
                found += [f"- {escape(text)}", ""]
            else:
                found += [escape(text), ""]
    return found


def blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines between blank lines. A field `name: ` that begins within a line is moved to a line of its own."""
    block: list[str] = []
    parts = [part for line in lines for part in FIELD_WITHIN.split(line)]
    for line in [*parts, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def items(block: Sequence[str]) -> Iterator[list[str]]:
    """Yield the parts of a block: fields, items with a hanging indent, and sentences on returned values and errors."""
    item: list[str] = []
    for i, line in enumerate(block):
        hangs = i + 1 < len(block) and block[i + 1].startswith(" ")
        after_hanging = bool(item) and item[-1].startswith(" ")
        begins = not line.startswith(" ") and (FIELD.match(line) or RETURNS.match(line) or hangs or after_hanging)
        if item and begins:
            yield item
            item = []
        item.append(line)
    yield item


def escape(text: str) -> str:
    """The text with single backticks as code and all other markup escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*`|_])", r"\\\1", text)
    return "".join(
        f"\\ ``{part.strip()}``\\ " if i % 2 and part.strip() else re.sub(r"([\\*|_])", r"\\\1", part)
        for i, part in enumerate(parts)
    )
