"""Checkboxes that show and hide runs on the whole page, by CSS alone."""

from prunus.reporting.render.chart import swatch
from prunus.reporting.render.text import esc
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section


def section(data: ReportData) -> Section:
    """A checkbox for each run, the base's always checked; empty if there is nothing to hide."""
    if not data.others and not data.matches:
        return Section("legend")
    chips = []
    for look in (one.look for one in data.runs):
        state = "checked disabled" if look.index == 0 else "checked"
        chips.append(
            f'<label class="chip c{look.hue}"><input type="checkbox" id="t{look.index}" autocomplete="off" {state}>'
            f"{swatch(look.line, look.marker).html()}<bdi>{esc(look.label)}</bdi></label>"
        )
    if data.matches:
        chips.append(
            '<label class="chip pub c0"><input type="checkbox" id="tp" autocomplete="off" checked>'
            f"{swatch('pub c0', 0).html()}published</label>"
        )
    return Section(
        "legend", f'<fieldset class="legend"><legend>Show</legend>{"".join(chips)}</fieldset>', styles=_hiding(data)
    )


def _hiding(data: ReportData) -> str:
    """CSS that hides the runs whose boxes are not checked, and highlights the run under the pointer."""
    rules = []
    for index in (one.look.index for one in data.others):
        rules.append(f"body:has(#t{index}:not(:checked)) .r{index}:not(.keep){{display:none}}")
    for index in (one.look.index for one in data.others):
        pointed = f"body:has(.chip:hover>#t{index},#t{index}:focus-visible)"
        rules.append(f"{pointed} .chart:not(.panel)>.run:not(.r{index},.r0){{opacity:.12}}")
        rules.append(f"{pointed} .many>.r{index}>.band{{fill-opacity:.2}}")
    return "".join([*rules, "body:has(#tp:not(:checked)) .chart .pub{display:none}"])
