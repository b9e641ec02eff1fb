"""The sections of a report in their order on the page. A new section is a file here and a line in SECTIONS."""

from collections.abc import Callable

from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section
from prunus.reporting.sections import (
    curves,
    draws,
    flips,
    glance,
    modes,
    published,
    settings,
    sizes,
    sparsity,
    stopping,
    tokens,
    verdicts,
)

SECTIONS: tuple[Callable[[ReportData], Section], ...] = (
    glance.section,
    verdicts.section,
    curves.section,
    tokens.section,
    sizes.section,
    stopping.section,
    modes.section,
    draws.section,
    published.section,
    sparsity.section,
    flips.section,
    settings.section,
)
