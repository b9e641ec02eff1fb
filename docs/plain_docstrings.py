"""Docstrings as reStructuredText, which Sphinx reads. Authors write plain text and need not know its rules."""

import re
from collections.abc import Iterator, Sequence

FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): ")
FIELD_WITHIN = re.compile(r"(?<=[.)]) (?=[a-z_]\w*(?:, [a-z_]\w*)*: )")
RETURNS = re.compile(r"(Returns|Raises|PrunusError) ")


def to_rst(lines: Sequence[str]) -> list[str]:
    """The lines as lists (of `name: what it is`, and of lines with a hanging indent), literal blocks and paragraphs."""
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
    """Runs of lines between blank lines; a field that begins within a line begins a line."""
    block: list[str] = []
    parts = [part for line in lines for part in FIELD_WITHIN.split(line)]
    for line in [*parts, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def items(block: Sequence[str]) -> Iterator[list[str]]:
    """A block cut where a field, an item with a hanging indent, or what comes back begins."""
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
    """Single backticks as code, and no other markup."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*`|_])", r"\\\1", text)
    return "".join(
        f"\\ ``{part.strip()}``\\ " if i % 2 and part.strip() else re.sub(r"([\\*|_])", r"\\\1", part)
        for i, part in enumerate(parts)
    )
