"""A comparison for continuous integration: Markdown for the summary of a job, and JUnit XML for its list of tests."""

from collections.abc import Sequence
from html import escape
from xml.sax.saxutils import quoteattr

from prunus.reporting.render.text import points, visible
from prunus.results.cells import Comparison
from prunus.results.contrasts import ENDS
from prunus.results.words import loss_in_words, verdict_in_words
from prunus.store.labels import unique_labels


def summary(comparison: Comparison, requirements: Sequence[str]) -> str:
    """Markdown with a row for each run, the requirements that are not met, and the warnings."""
    base, *names = map(_cell, unique_labels([comparison.base, *comparison.others]))
    unmet = [line for requirement in requirements for line in comparison.unmet(requirement)]
    head = "passed" if requirements and not unmet else "not passed" if unmet else "compared"
    lines = [f"### Prunus: {head}", "", "| run | verdict | loss | stops by itself |", "|---|---|---|---|"]
    for name, entry in zip(names, comparison.others, strict=True):
        ends = entry.stopping.endings.get(ENDS)
        stops = f"{entry.stops} ({points(ends.difference)})" if ends and entry.stops else ""
        lines.append(f"| {name} | {verdict_in_words(entry)} | {loss_in_words(entry)} | {stops} |")
    lines += ["", f"Compared with {base}; a loss of {comparison.margin.words()} or more matters.", ""]
    lines += [f"- {_cell(line)}" for line in unmet]
    lines += [f"- warning: {_cell(warning)}" for warning in comparison.warnings]
    return "\n".join(lines).rstrip() + "\n"


def junit(comparison: Comparison, requirements: Sequence[str]) -> str:
    """XML of JUnit: a test for each run and requirement, which fails where the run does not meet it."""
    base, *names = unique_labels([comparison.base, *comparison.others])
    cases, failures = list[str](), 0
    for requirement in requirements:
        unmet = comparison.unmet(requirement)
        for name, entry in zip(names, comparison.others, strict=True):
            why = next((line for line in unmet if line.startswith(f"{name} does not meet '")), None)
            failures += why is not None
            head = f'<testcase classname="prunus" name={_attribute(f"{name}: {requirement}")}'
            told = f"{verdict_in_words(entry)}, {loss_in_words(entry)}, compared with {base}"
            body = f"<system-out>{escape(visible(told))}</system-out>"
            body += "" if why is None else f"<failure message={_attribute(why)}/>"
            cases.append(f"{head}>{body}</testcase>")
    counts = f'tests="{len(cases)}" failures="{failures}"'
    suite = f'<testsuite name="prunus compare" {counts}>'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', suite, *cases, "</testsuite>", ""])


def _cell(text: str) -> str:
    """Text on a single line with Markdown's special characters escaped: others choose the names of models and tasks."""
    special = "\\`*_[]|<>&~#!"
    return "".join(f"&#{ord(sign)};" if sign in special else sign for sign in visible(" ".join(text.split())))


def _attribute(text: str) -> str:
    return quoteattr(visible(" ".join(text.split())))
