"""The bar below the headline: links to the parts of the page, and filters, which work by CSS alone.

The script keeps in the address what is filtered, so that a link shows the same.
"""

from collections.abc import Iterable, Sequence

from prunus.reporting.render.text import esc
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section

Choice = tuple[str, str, str]  # the id of a box, its label, and the CSS of what it shows or hides


def bar(data: ReportData, sections: Sequence[Section]) -> str:
    """The HTML of the bar."""
    links = "".join(f'<a href="#{one.id}">{one.name}</a>' for one in sections if one.name and one.html)
    fields = "".join(_field(title, choices) for title, choices in _filters(data).items())
    more = f'<details class="filter"><summary>Filter</summary><div>{fields}</div></details>' if fields else ""
    return f'<nav aria-label="Parts of the page"><div class="links">{links}</div>{more}</nav>'


def styles(data: ReportData) -> str:
    """CSS that hides what is not chosen, and lets the variant stand out that is pointed at or named in the address."""
    rules = ["body:has(#k0:checked) .glance .task:not(.task1){display:none}"]
    rules += [rule for choices in _filters(data).values() for _, _, rule in choices]
    for one in data.others:
        row = f".r{one.look.index}"
        pointed = f"body:has(tr{row}.keep:is(:hover,:focus-within,:target))"
        rules.append(f"body:has(#t{one.look.index}:not(:checked)) {row}:not(.keep){{display:none}}")
        rules.append(f"{pointed} .chart:not(.panel)>.run:not({row},.r0){{opacity:.12}}")
        rules.append(f"{pointed} .many>{row}>.band{{fill-opacity:.2}}")
    return "".join(rules)


def _filters(data: ReportData) -> dict[str, list[Choice]]:
    """{title: boxes} of every filter that has a choice."""
    found = {
        "Variants": _groups("f", ((one.look.family, one.look.index) for one in data.others)),
        "Verdict": _groups("w", ((one.contrast.verdict, one.look.index) for one in data.others if one.contrast)),
    }
    found = {title: choices for title, choices in found.items() if len(choices) > 1}
    if len(data.tasks) > 1:
        tasks = [(f"k{k}", task, f".task:not(.task{k})") for k, task in enumerate(data.tasks, 1)]
        rules = [(id, task, f"body:has(#{id}:checked) {others}{{display:none}}") for id, task, others in tasks]
        found["Task"] = [("k0", "all", ""), *rules]
    if data.matches:
        found["Figures"] = [("tp", "published", "body:has(#tp:not(:checked)) .chart .pub{display:none}")]
    return found


def _groups(letter: str, runs: Iterable[tuple[str, int]]) -> list[Choice]:
    """A box for all runs of one name."""
    groups: dict[str, list[str]] = {}
    for name, index in runs:
        groups.setdefault(name, []).append(f".r{index}")
    return [
        (f"{letter}{k}", name, f"body:has(#{letter}{k}:not(:checked)) :is({','.join(of)}){{display:none}}")
        for k, (name, of) in enumerate(groups.items())
    ]


def _field(title: str, choices: Sequence[Choice]) -> str:
    """A radio button for each task, or a box for each other choice."""
    boxes = ""
    for id, label, _ in choices:
        kind = f'type="{"radio" if title == "Task" else "checkbox"}" name="{title}" id="{id}" autocomplete="off"'
        checked = "" if title == "Task" and id != "k0" else " checked"
        boxes += f"<label><input {kind}{checked}><bdi>{esc(label)}</bdi></label>"
    return f"<fieldset><legend>{title}</legend>{boxes}</fieldset>"
