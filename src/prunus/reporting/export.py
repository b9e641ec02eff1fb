from pathlib import Path


def contents(view, both, standings, figures, csv) -> dict[Path, str | bytes]:
    return {}
