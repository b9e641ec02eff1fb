"""Tables of measurement pages are those of the rows that stand in the repository."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def test_the_page_on_servings_shows_what_its_rows_say():
    correct, chains = defaultdict[tuple[str, int], dict[str, int]](dict), defaultdict[str, list[dict[str, str]]](list)
    with (ROOT / "benchmarks/serving.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            correct[row["serving"], int(row["budget"])][row["problem_id"]] = int(row["correct"])
            if row["budget"] == "512":
                chains[row["serving"]].append(row)
    text = (ROOT / "docs/measurements/serving.md").read_text("utf-8")
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table}
    assert rows.keys() == chains.keys() and len(rows) == 5

    def areas(serving: str) -> np.ndarray:
        curves = [correct[serving, budget] for budget in (128, 256, 512)]
        assert curves[0].keys() == curves[1].keys() == curves[2].keys() == correct["KV bf16", 512].keys()
        values = np.array([[curve[problem] for problem in sorted(curve)] for curve in curves])
        return 100 * (values[0] / 2 + values[1] + values[2] / 2) / 2

    for serving, cells in rows.items():
        for budget, shown in zip((128, 256, 512), cells[:3], strict=True):
            assert 100 * np.mean(list(correct[serving, budget].values())) == float(shown)
        area = areas(serving)
        assert abs(area.mean() - float(cells[3])) <= 0.0501
        if serving != "KV bf16":
            difference = (area - areas("KV bf16")).mean()
            assert abs(difference - float(cells[4].split(" ")[0])) <= 0.0501
        ends, loops = (
            sum(row["ended"] != "forced" for row in chains[serving]),
            sum(int(row["loops"]) for row in chains[serving]),
        )
        assert (ends, loops) == (int(cells[6]), int(cells[7])), serving
