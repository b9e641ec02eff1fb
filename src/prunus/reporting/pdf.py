"""A drawing as a PDF file of one page: vector shapes and selectable text, written by hand as it needs so little.

Text is set in Helvetica, one of the fonts that every PDF reader has; it is not embedded. What that font lacks becomes
a question mark (the .svg beside it has everything).
"""

import zlib
from collections.abc import Sequence

from prunus.reporting.drawing import Drawing, Label, Shape, text_width
from prunus.reporting.render.text import MINUS, THIN

POINTS = 0.75  # of a CSS pixel


def pdf(drawing: Drawing, title: str) -> bytes:
    """The bytes of the file, the same for the same drawing."""
    width, height = drawing.width * POINTS, drawing.height * POINTS
    opacities = sorted({part.opacity for part in drawing.parts if isinstance(part, Shape)} | {1.0})
    lines = [f"{POINTS:g} 0 0 {POINTS:g} 0 0 cm 1 J 1 j"]
    for part in drawing.parts:
        if isinstance(part, Shape):
            lines.append(_shape(part, drawing.height, opacities.index(part.opacity)))
        else:
            lines.append(_label(part, drawing.height, opacities.index(1.0)))
    content = zlib.compress("\n".join(lines).encode("cp1252"), 9)
    states = " ".join(f"/G{k} << /ca {value:.3f} /CA {value:.3f} >>" for k, value in enumerate(opacities))
    resources = f"<< /Font << /F 4 0 R >> /ExtGState << {states} >> >>"
    page = f"/MediaBox [0 0 {width:.2f} {height:.2f}] /Resources {resources} /Contents 5 0 R"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R {page} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Producer (Prunus) /Title (%b) >>" % _string(title),
    ]
    return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    """Objects numbered from 1 (catalog first, information last), the table of their places, the trailer."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(objects), start)
    return bytes(out)


def _shape(shape: Shape, height: float, state: int) -> str:
    """Operators that draw a shape; PDF counts y from below."""
    words = [f"/G{state} gs"]
    if shape.fill:
        words.append(f"{_rgb(shape.fill)} rg")
    if shape.stroke:
        dash = " ".join(f"{part:g}" for part in shape.dash)
        words.append(f"{_rgb(shape.stroke)} RG {shape.width:g} w [{dash}] 0 d")
    for command, *numbers in shape.steps:
        places = [f"{height - value if k % 2 else value:.2f}" for k, value in enumerate(numbers)]
        words.append(" ".join([*places, {"M": "m", "L": "l", "C": "c", "Z": "h"}[command]]))
    words.append("B" if shape.fill and shape.stroke else "f" if shape.fill else "S")
    return "\n".join(words)


def _label(label: Label, height: float, state: int) -> str:
    text = _plain(label.text)
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor] * text_width(text, label.size)
    place = f"{label.x - shift:.2f} {height - label.y:.2f} Td"
    shown = _string(label.text).decode("cp1252")
    return f"/G{state} gs BT /F {label.size:g} Tf {_rgb(label.colour)} rg {place} ({shown}) Tj ET"


def _plain(text: str) -> str:
    return text.replace(MINUS, "\u2013").replace(THIN, " ").replace("\u00a0", " ")


def _string(text: str) -> bytes:
    """A PDF string's inside in the font's encoding."""
    plain = _plain(text).encode("cp1252", "replace")
    return plain.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")


def _rgb(colour: str) -> str:
    return " ".join(f"{int(colour[k : k + 2], 16) / 255:.3f}" for k in (1, 3, 5))
