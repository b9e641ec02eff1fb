"""Tables of measurement pages are those of the rows that stand in the repository."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import gsm8k_page
import numpy as np
import pytest
import study_page
from pages import written

ROOT = Path(__file__).parents[2]
BUDGETS = 128, 256, 512
Rows = dict[str, dict[tuple[str, int], dict[str, str]]]  # by serving, and by problem and budget


def tables() -> dict[str, list[list[str]]]:
    """The cells of each table of the page, by its heading."""
    page = (ROOT / "docs/measurements/serving.md").read_text("utf-8")
    parts = re.split(r"^## ((?:llama|vLLM).+)$", page, flags=re.MULTILINE)
    return {
        heading: [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ") and not line.startswith("| serving")
        ]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def groups() -> dict[str, Rows]:
    """The rows of each table, by its heading."""
    found = defaultdict[str, Rows](lambda: defaultdict(dict))
    with (ROOT / "benchmarks/serving.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["problem_id"], int(row["budget"])
            found[f"{row['engine']}, {row['model']}"][row["serving"]][key] = row
    return found


def solved(rows: dict[tuple[str, int], dict[str, str]]) -> np.ndarray:
    """1 where a problem was solved under a budget, [problems, budgets], in the order of their names."""
    problems = sorted({problem for problem, _ in rows})
    return np.array([[int(rows[problem, budget]["correct"]) for budget in BUDGETS] for problem in problems])


def area(right: np.ndarray) -> np.ndarray:
    """Points of area under accuracy over log2 budget, of each problem."""
    return 100 * (right[:, 0] / 2 + right[:, 1] + right[:, 2] / 2) / 2


@pytest.mark.parametrize("heading", tables())
def test_the_page_on_servings_shows_what_its_rows_say(heading):
    rows, table = groups()[heading], tables()[heading]
    assert {cells[0] for cells in table} == rows.keys()
    (base, *_), *others = table
    dense = solved(rows[base])
    for name, *cells in table:
        assert rows[name].keys() == rows[base].keys(), "the same problems"
        right, last = solved(rows[name]), [row for (_, budget), row in rows[name].items() if budget == BUDGETS[-1]]
        assert [float(cell) for cell in cells[:2]] == pytest.approx(100 * right.mean(0)[1:], abs=0.501)
        ended, loops = ([row["ended"] != "forced" for row in last], [int(row["loops"]) for row in last])
        assert [float(cell) for cell in cells[3:]] == pytest.approx(
            [100 * np.mean(ended), 100 * np.mean(loops)], abs=0.501
        )
        if name == base:
            assert float(cells[2]) == pytest.approx(area(right).mean(), abs=0.0501)
            continue
        difference, low, high = map(float, re.findall(r"[-+]?\d+\.\d", cells[2]))
        each = area(right) - area(dense)
        assert difference == pytest.approx(each.mean(), abs=0.0501)
        draws = np.random.default_rng(1).integers(0, len(each), (2000, len(each)))
        assert [low, high] == pytest.approx(np.percentile(each[draws].mean(1), [2.5, 97.5]), abs=1.5)
    assert others


def test_the_page_on_gsm8k_shows_what_its_rows_say():
    """By the code that wrote it, and once more from the file alone."""
    page = gsm8k_page.PAGE.read_text("utf-8")
    variants = gsm8k_page.read_rows()
    assert gsm8k_page.tables(variants) in page and gsm8k_page.PICTURE.read_text("utf-8") == gsm8k_page.picture(variants)
    assert "| Wanda 20 % | certified | 133 | +2.1 [-2.5, 6.5] | +1.5 [-5.0, 5.2] |" in page, "as `prunus find` said"
    table = gsm8k_tables()
    with gsm8k_page.ROWS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    problems, budgets = {row["problem_id"] for row in rows}, [64, 128, 256, 512]
    assert len(problems) == 200 and table[0][1:5] == [str(budget) for budget in budgets]
    right = {
        name: np.array(
            [
                [row["correct"] == "1" for row in sorted(rows, key=lambda row: row["problem_id"])
                 if row["variant"] == name and row["budget"] == str(budget)]
                for budget in budgets
            ],
            float,
        )
        for name in {row["variant"] for row in rows}
    }  # fmt: skip
    assert [cells[0] for cells in table[2:]] == list(variants) and right.keys() == variants.keys()
    for name, *cells in table[2:]:
        assert right[name].shape == (4, 200)
        assert [float(cell) for cell in cells[:4]] == pytest.approx(100 * right[name].mean(1), abs=0.0501)
        last = [row for row in rows if row["variant"] == name and row["budget"] == "512"]
        shares = [np.mean([row["ended"] != "forced" for row in last]), np.mean([row["loops"] == "1" for row in last])]
        assert [float(cell) for cell in cells[6:]] == pytest.approx([100 * share for share in shares], abs=0.501)
        if name == "dense":
            continue
        each = 100 * (right[name] - right["dense"])
        draws = np.random.default_rng(1).integers(0, 200, (4000, 200))
        for cell, values in zip(
            cells[4:6], (each[3], (each[0] / 2 + each[1] + each[2] + each[3] / 2) / 3), strict=True
        ):
            difference, low, high = map(float, re.findall(r"[-+]?\d+\.\d", cell))
            assert difference == pytest.approx(values.mean(), abs=0.0501)
            assert [low, high] == pytest.approx(np.percentile(values[draws].mean(1), [2.5, 97.5]), abs=1.5)


def right_at_512(rows: dict[tuple[str, int], dict[str, str]], problems: set[str]) -> dict[str, bool]:
    """Whether each of some problems was solved under the largest budget."""
    return {problem: rows[problem, 512]["correct"] == "1" for problem in problems}


def words(name: str) -> str:
    """The text of a page in one line."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def test_the_page_on_servings_says_what_the_same_model_solves_twice():
    served, dense = groups()["vLLM, 0.5B"]["KV bf16"], dict[tuple[str, int], dict[str, str]]()
    with gsm8k_page.ROWS.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["variant"] == "dense":
                dense[row["problem_id"], int(row["budget"])] = row
    problems = {problem for problem, _ in served}
    first, second = right_at_512(dense, problems), right_at_512(served, problems)
    lost, won = (sum(first[name] - second[name] == sign for name in problems) for sign in (1, -1))
    assert (len(problems), lost, won) == (100, 5, 1)
    assert (
        f"of the 100 problems the 0.5B in bfloat16 solves {sum(second.values())} here at 512 tokens and"
        f" {sum(first.values())} on the page of [GSM8K]"
    ) in words("docs/measurements/serving.md")


def test_sentences_on_servings_are_those_of_the_rows():
    page = words("docs/measurements/serving.md")
    loops = groups()["vLLM, 0.5B, Magnitude 50 %"]
    right = [sum(right_at_512(rows, {name for name, _ in rows}).values()) for rows in loops.values()]
    assert right == [1, 3, 0] and "none of 60 problems is solved instead of 1; with 1.1 three are" in page
    pairs = []
    for model in ("0.5B", "1.5B"):
        one, other = groups()[f"llama.cpp, {model}"]["KV f16"], groups()[f"vLLM, {model}"]["KV bf16"]
        names = {name for name, _ in one}
        counts = [sum(right_at_512(rows, names).values()) for rows in (one, other)]
        pairs.append(f"{counts[0]} and {counts[1]} of {len(names)} ({model})")
    assert f"llama.cpp's Q8_0 and vLLM's bfloat16 solve {', '.join(pairs)}" in page
    (low,) = [
        float(re.findall(r"-\d+\.\d", cells[3])[1]) for cells in tables()["llama.cpp, 1.5B"] if cells[0] == "KV q8_0"
    ]
    assert f"24 problems of the 1.5B rule out only a loss of more than {-low} points of area" in page


def test_pages_say_of_how_much_a_loss_is_ruled_out():
    right_PB = gsm8k_page.read_rows()["dense"].correct_PB
    whole = 100 * (right_PB[:, 0] / 2 + right_PB[:, 1] + right_PB[:, 2] + right_PB[:, 3] / 2).mean() / 3
    readme = words("README.md")
    assert f"For the 0.5B (of {whole:.1f} %) [a loss of 5 points is ruled out]" in readme
    assert f"a loss of 5 points over all budgets, of {whole:.1f}, is ruled out" in words("docs/measurements/gsm8k.md")
    assert f"a loss of 5 of {whole:.0f} points by W8A8" in words("docs/first-model.md")
    assert f"less than 5 of {whole:.0f} points over budgets to 512" in words("docs/measurements/README.md")
    certified = {cells[0] for cells in gsm8k_tables(2) if cells[1] == "certified"}
    assert certified == {"W8A8", "Wanda 20 %"} and "for W8A8 and a fifth of the weights" in readme


def test_the_table_of_the_readme_is_that_of_gsm8k_and_of_the_study():
    solved = {cells[0]: cells[4] for cells in gsm8k_tables()}
    at_most = max(-float(re.findall(r"-?\d+\.\d", cells[5])[1]) for cells in gsm8k_tables() if cells[0] in GENTLE)
    larger = {cells[0]: cells for cells in rows_of(written(study_page.PAGE, "study_page")) if len(cells) > 10}
    block, two, zeros = (larger[name] for name in ("without 1 of 28 blocks", "without 2 of 28 blocks", "Wanda 20 %"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [cells[-1] for cells in rows_of(readme) if cells[0].startswith("`")] == [
        *(f"{solved[name]} of {solved['dense']}" for name in GENTLE[:2]),
        f"{zeros[4]} of {larger['dense'][4]}",
        f"{solved['Wanda 50 %']}; {solved['Wanda 50 %, recovered']} of {solved['dense']}",
        f"{block[4]}; {two[4]} of {larger['dense'][4]}",
    ]
    text = words("README.md")
    assert f"where {at_most:.0f} points can be chance" in text
    least, most, up_to = *re.findall(r"\d+\.\d", block[5])[1:], re.findall(r"\d+\.\d", zeros[5])[1]
    assert f"a fifth of its weights costs less than {up_to} points and a block {most} to {least}." in text


GENTLE = ("W8A8", "24 % fewer channels", "Wanda 20 %")


def gsm8k_tables(number: int = 1) -> list[list[str]]:
    """The cells of a table of the page on GSM8K."""
    part = written(gsm8k_page.PAGE, "gsm8k_page").split("\n## ")[number - 1]
    return rows_of(part)


def rows_of(text: str) -> list[list[str]]:
    """The cells of all tables of a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
