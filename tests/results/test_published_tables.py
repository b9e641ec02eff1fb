"""Tables of measurement pages that benchmarks/*.jsonl hold are those of the finished lines there."""

import re
from itertools import product
from math import exp
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import calibration_page
import pruning
import pytest
import quality_page
import recover_page
from finished import add_line, read_lines
from pages import written
from recover_page import area, correct, dense_of, gain, of_reasoner, share, values

ROOT = Path(__file__).parents[2]
Line = dict[str, Any]


def lines_of(name: str) -> list[Line]:
    """The finished lines of a benchmark."""
    found = read_lines(ROOT / f"benchmarks/{name}.jsonl")
    assert found
    return found


def page(name: str) -> str:
    """The text of a page of measurements, with the signs that its benchmark prints."""
    return (ROOT / f"docs/measurements/{name}.md").read_text("utf-8").replace("−", "-")


def tables_of(name: str) -> str:
    """The tables that a benchmark wrote into its page, with the signs that it prints."""
    return written(ROOT / f"docs/measurements/{name}.md", name).replace("−", "-")


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the rows under a heading, without titles; an empty first cell repeats the one above."""
    body = re.split(r"^#+ ", page(name).partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    found: list[list[str]] = []
    for line in [line for line in body.splitlines() if line.startswith("|")][2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found.append([cells[0] or found[-1][0], *cells[1:]])
    assert found, f"{name}.md has no table under {heading}"
    return found


@pytest.mark.slow
def test_the_page_on_recovery_shows_what_its_lines_say():
    lines = lines_of("recover")
    text = recover_page.tables(of_reasoner(recover_page.SHIPPED, lines), of_reasoner(recover_page.SECOND, lines))
    assert tables_of("recover") == text


def test_stopping_after_recovery_is_what_the_page_says():
    """No fewer chains end by themselves, except for two cells."""
    usual, pruned = recover_page.cells(of_reasoner(recover_page.SHIPPED, lines_of("recover")))
    fewer = {}
    for cell in {line["cell"] for line in usual}:
        after = [line for line in usual if line["cell"] == cell]
        before = [pruned[f"{cell}-{line['seed']}"] for line in after]
        if mean(values(line, "ends").mean() for line in after) < mean(values(line, "ends").mean() for line in before):
            fewer[cell] = recover_page.change(before, after, lambda line: values(line, "ends"))
    assert fewer == {"alps-80": "86.2 to 84.3", "shortgpt-2": "98.6 to 84.3"}
    assert all(change in page("recover").replace("\n  ", " ") for change in fewer.values())


def after_recovery(cell: str) -> float:
    """The number behind `to` in a cell of a table."""
    return float(cell.partition(" to ")[2].split()[0])


def test_the_howto_on_recovery_says_what_helps_where():
    """By the tables of both pages, which are those of the lines."""
    toy = {cells[0]: after_recovery(cells[1]) for cells in rows("recover", "By method and sparsity")}
    llm = {
        name: [after_recovery(cell) if cell else 0.0 for cell in cells] for name, *cells in rows("quality", "Recovery")
    }
    more = {cells[0]: float(cells[1]) for cells in rows("recover", "Tokens, Wanda 60 %")}
    text = " ".join((ROOT / "docs/recover.md").read_text("utf-8").split())
    assert "Magnitude's zeros recover at least as well as Wanda's on the toy, and always worse on [SmolLM2]" in text
    amounts = [name.removeprefix("Wanda ") for name in toy if name.startswith("Wanda ")]
    assert len(amounts) == 5 and all(toy[f"Magnitude {amount}"] >= toy[f"Wanda {amount}"] for amount in amounts)
    assert all(mine > wanda for mine, wanda in zip(llm["magnitude"], llm["wanda"], strict=True))
    assert "at 70 % ALPS with recovery is best on both" in text
    assert max(toy, key=lambda name: toy[name] * ("70 %" in name)) == "ALPS 70 %"
    assert min((name for name in llm if "sequences" not in name), key=lambda name: llm[name][2]) == "alps"
    assert "on SmolLM2 at 50 % four times the tokens help Wanda more than a better method" in text
    assert llm["wanda, 64 sequences"][0] < min(numbers[0] for name, numbers in llm.items() if "sequences" not in name)
    assert "with 60 % zeros ALPS with a quarter of them is ahead on the toy" in text
    assert more["64,000"] < toy["ALPS 60 %"]


def test_a_benchmark_that_is_resumed_adds_no_line_twice(tmp_path):
    file = tmp_path / "rows.jsonl"
    for line in ({"name": "a"}, {"name": "ab"}, {"name": "a"}):
        add_line(file, line)
    add_line(None, {"name": "c"})
    assert read_lines(file) == [{"name": "a"}, {"name": "ab"}] and read_lines(tmp_path / "none") == []


def test_the_page_on_quality_shows_what_its_lines_say():
    """The rows of its tables; their order is that of the benchmark's grid, which needs the model."""
    lines = lines_of("quality")
    (dense,) = (line["perplexity"] for line in lines if line["table"] == "dense" and "text" not in line)
    text = quality_page.tables(dense, [line for line in lines if not quality_page.is_left(line)])
    shown = tables_of("quality")
    drawn = quality_page.drawn_of(dense, [line for line in lines if not quality_page.is_left(line)])
    assert (ROOT / "docs/images/quality.svg").read_text("utf-8") == drawn
    assert sorted(shown.splitlines()) == sorted(text.splitlines())
    (mixtures,) = (line for line in lines_of("k_quants") if (line["model"], line["type"]) == ("smollm2", "dense"))
    (compressor,) = (line for line in lines_of("pruning") if line["name"] == "dense")
    others = f"{mixtures['perplexity']:.2f} and {exp(mean(compressor['losses'])):.2f} on other docstrings"
    assert others in " ".join(page("quality").split())


def test_the_page_on_pruning_shows_what_the_same_lines_say():
    text, found = (ROOT / "docs/pruning.md").read_text("utf-8"), dict[tuple[str, str, str], list[Line]]()
    for line in lines_of("quality"):
        if "row" in line:
            found.setdefault((line["table"], line["row"], line["column"]), []).append(line)

    def perplexity(table: str, row: str, column: str) -> float:
        return mean(line["perplexity"] for line in found[table, row, column])

    for name in ("magnitude", "wanda", "sparsegpt", "alps"):
        value = perplexity("methods", name, "50 %")
        shown = f"{value:.2f}" if value < 100 else f"{value:.0f}"
        seconds = mean(line["cpu_seconds"] for line in found["methods", name, "50 %"])
        assert f"| `{name}` | {shown} | {seconds:.0f} |" in text
    updated = perplexity("methods", "wanda, `--update obs`", "50 %") / perplexity("methods", "sparsegpt", "50 %")
    assert f"is {100 * (updated - 1):.0f} % above SparseGPT's" in text.replace("\n", " ")
    names = {row for table, row, _ in found if table == "allocations"} - {"uniform"}
    uniform = perplexity("allocations", "uniform", "20 %")
    assert "none helps at 20 %" in text.replace("\n", " ")
    assert all(perplexity("allocations", name, "20 %") > uniform for name in names)
    assert "at 70 % `atp` helps most" in text
    assert min(names, key=lambda name: perplexity("allocations", name, "70 %")) == "atp"


LEFT = {
    "row budgets": ("methods", "wanda, `--row-power 0.25`"),
    "DSnoT": ("methods", "dsnot"),
    "AlphaPruning": ("allocations", "alphapruning"),
    "that LayerIF": ("allocations", "layerif-sketch"),
    "uniform Wanda has": ("allocations", "uniform"),
}


def test_what_has_left_had_the_perplexities_that_the_changelog_shows():
    text, lines = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("\n ", ""), lines_of("quality")
    for name, (table, row) in LEFT.items():
        of = [line for line in lines if (line["table"], line.get("row"), line.get("column")) == (table, row, "50 %")]
        assert f"{name} {mean(line['perplexity'] for line in of):.1f}" in text, name


QUANTISED = {
    "dense": "dense",
    "GPTQ, W8A8": "GPTQ W8A8",
    "rounding to nearest, W8A8": "RTN W8A8",
    "GPTQ, W4 g32": "GPTQ W4 g32",
    "rounding to nearest, W4 g32": "RTN W4 g32",
    "GPTQ, W4 g64": "GPTQ W4 g64",
    "GPTQ, W4 g64, `--recover`": "GPTQ W4 g64, recovered",
    "rounding to nearest, W4 g64": "RTN W4 g64",
    "llm-compressor's GPTQ, W4 g64": "llm-compressor GPTQ W4 g64",
    "the same with searched scales (`memoryless_mse`)": "llm-compressor GPTQ W4 g64, observer mse",
}
EQUAL_BYTES = {
    "W4 g64": "GPTQ W4 g64",
    "a quarter zeros, W4 g64": "25 % zeros, W4 g64",
    "3 bits, g64": "GPTQ 3 bits g64",
    "half zeros, W4 g64": "50 % zeros, W4 g64",
}


def test_the_page_on_4_and_8_bits_shows_what_its_lines_say():
    lines = lines_of("quantise")

    def perplexities(name: str) -> str:
        of = sorted((line for line in lines if line["name"] == name), key=lambda line: line["seed"])
        return ", ".join(f"{line['perplexity']:.2f}" for line in of)

    shown = rows("quantise", "4 and 8 bits")
    assert [name for name, *_ in shown] == list(QUANTISED)
    for name, perplexity, seconds in shown:
        of = [line for line in lines if line["name"] == QUANTISED[name]]
        assert perplexity == perplexities(QUANTISED[name]), name
        assert seconds == ("" if name == "dense" else f"{mean(line['cpu_s'] for line in of):.0f}"), name
    equal = rows("quantise", "Equal bytes")
    assert [(name, perplexity) for _, name, perplexity in equal] == [
        (name, perplexities(line)) for name, line in EQUAL_BYTES.items()
    ]
    (theirs,) = (line for line in lines if line["name"].startswith("auto-round"))
    (ours,) = (line for line in lines if line["name"] == "GPTQ W4 g64, recovered" and line["seed"] == 0)
    assert f"({ours['perplexity']:.2f} and {theirs['perplexity']:.2f} with W4 g64, seed 0)" in page("quantise")
    took = mean(line["cpu_s"] for line in lines if line["name"] == "GPTQ W4 g64, recovered")
    text = page("quantise").replace("\n", " ")
    assert f"auto-round took {theirs['cpu_s']:,.0f} s; `--recover` took {took:.0f}" in text
    assert round(theirs["cpu_s"] / took) == 7 and "in a seventh of its CPU time" in text


IN_VLLM = {
    "dense: vLLM, torch in bfloat16": ("dense", "vllm", "bfloat16"),
    "W4A16: vLLM, torch in bfloat16": ("W4A16", "vllm", "bfloat16"),
    "W4A16: vLLM by default with AMX": ("W4A16", "vllm_default"),
    "W8A8: vLLM, exact in float32": ("W8A8", "vllm", "rounded"),
}


def test_the_page_on_4_and_8_bits_shows_how_far_vllm_is_from_the_formats():
    found = {(line["model"], line["form"]): line for line in lines_of("formats")}
    shown = rows("quantise", "W8A8 and W4A16 in vLLM")
    assert [name for name, *_ in shown] == list(IN_VLLM)
    for name, *cells in shown:
        form, *ways = IN_VLLM[name]
        for model, cell in zip(("smollm2", "qwen-0.5b"), cells, strict=True):
            assert cell == ", ".join(f"{found[model, form][way]:.3f}" for way in ways), (name, model)


def answers(reasoner: int, part: str) -> dict[str, list[Line]]:
    """The lines of a part of benchmarks/width.py by row, one per seed; and the dense model's."""
    own = of_reasoner(reasoner, lines_of("width"))
    found: dict[str, list[Line]] = {"dense": [dense_of(own)]}
    for line in own:
        if line.get("part") == part:
            found.setdefault(line["row"], []).append(line)
    return found


def shown_as(found: dict[str, list[Line]], name: str) -> tuple[str, str]:
    """Accuracy at 512 tokens, and the difference of the area to dense with its interval."""
    (dense,), each = found["dense"], found[name]
    solved = f"{100 * mean(correct(line).mean() for line in each):.1f}"
    if name == "dense":
        return solved, f"({share(area(dense))})"
    change = gain([dense] * len(each), each, area)
    return solved, change.replace("+0.0 ", "0.0 ").replace("-0.0", "0.0")


@pytest.mark.slow
def test_the_page_on_width_shows_what_the_lines_of_the_tiny_reasoner_say():
    found = answers(recover_page.SHIPPED, "tiny")
    for name, *cells in rows("width", "The tiny reasoner"):
        removed, _, how = name.partition(" %")
        kept = 256 if removed == "none" else round(256 * (1 - float(removed) / 100))
        row = "dense" if kept == 256 else f"width-obs-{kept}ch{'-recovered' if how else ''}"
        assert tuple(cells) == shown_as(found, row), name
    second = answers(recover_page.SECOND, "tiny")
    for kept in (192, 160, 128, 96):
        difference, low, high = map(float, re.findall(r"[\d.-]+", shown_as(second, f"width-obs-{kept}ch")[1]))
        loss = f"{-difference} {'points' if kept == 192 else ''} [{-high}, {-low}]".replace("  ", " ")
        assert loss in page("width").replace("\n ", ""), loss


WAYS = {
    "ShortGPT": ("others", "shortgpt-2"),
    "ShortGPT, recovered": ("others", "shortgpt-2-recovered"),
    "OBS, not fitted": ("methods", "width-obs-unfitted-160ch"),
    "OBS": ("tiny", "width-obs-160ch"),
    "OBS, recovered": ("tiny", "width-obs-160ch-recovered"),
    "Wanda": ("others", "wanda-25"),
    "ALPS": ("others", "alps-25"),
}


@pytest.mark.slow
def test_the_page_on_width_shows_what_the_lines_of_five_ways_say():
    for _, name, *cells in rows("width", "Same parameters removed, five ways"):
        part, row = WAYS[name]
        found = {key: lines[:1] for key, lines in answers(recover_page.SHIPPED, part).items()}  # seed 0
        assert tuple(cells) == shown_as(found, row), name
    methods = answers(recover_page.SHIPPED, "methods") | {
        row: lines[:1] for row, lines in answers(recover_page.SHIPPED, "tiny").items() if row == "width-obs-160ch"
    }
    for chosen, *cells in rows("width", "Choice, fit and target"):
        method = chosen.split("'")[0].lower()
        for how, cell in zip(("-unfitted", "-own", ""), cells, strict=True):
            (line,) = methods[f"width-{method}{how}-160ch"]
            assert cell == share(area(line)), (chosen, how)


def test_the_page_on_width_shows_what_the_lines_of_the_mixture_say():
    found = answers(2, "moe")  # benchmarks/width.py, MIXTURE
    names = {
        "2/8": ("experts-reap-drop2", "width-experts-obs-75", "wanda-experts-25"),
        "4/8": ("experts-reap-drop4", "width-experts-obs-50", "wanda-experts-50"),
    }
    ways = ("experts, REAP", "channels", "zeros, Wanda")
    for removed, by, *cells in rows("width", "Experts of a mixture"):
        row = "dense" if removed == "nothing" else names[removed][ways.index(by)]
        assert tuple(cells) == shown_as(found, row), (removed, by)


SMOLLM2 = {
    "25 %, OBS, three seeds": "width-obs-1152ch",
    "25 %, `--target own`": "width-obs-own-1152ch",
    "25 %, Wanda's choice": "width-wanda-1152ch",
    "25 %, magnitude's choice": "width-magnitude-1152ch",
    "25 %, `--no-fit`": "width-obs-unfitted-1152ch",
    "25 %, recovered on 64 x 512 other tokens": "width-obs-1152ch-recovered",
    "37.5 %, OBS": "width-obs-960ch",
    "37.5 %, recovered": "width-obs-960ch-recovered",
    "50 %, OBS": "width-obs-768ch",
    "50 %, recovered": "width-obs-768ch-recovered",
}


def test_the_page_on_width_shows_what_the_lines_of_smollm2_say():
    of: dict[str, list[Line]] = {}
    for line in lines_of("width"):
        if line.get("part") == "smollm2":
            of.setdefault(line["row"], []).append(line)
    shown = rows("width", "A language model, and attention")
    assert [name for name, *_ in shown] == list(SMOLLM2)
    for name, removed, perplexity in shown:
        each = sorted(of[SMOLLM2[name]], key=lambda line: line["seed"])
        assert removed == f"{100 * (1 - each[0]['parameters']):.0f}", name
        assert perplexity == ", ".join(f"{line['perplexity']:.2f}" for line in each), name
    damped = (of[f"width-obs-damped{value}-1152ch"][0]["perplexity"] for value in ("0.01", "0.1", "1"))
    assert "{:.2f}, {:.2f} and {:.2f}".format(*damped) in page("width").replace("\n", " ")


@pytest.mark.parametrize("name", ["recover", "quality", "quantise", "width", "calibration"])
def test_pages_say_where_their_lines_are(name):
    assert f"(../../benchmarks/{name}.jsonl)" in page(name)


def test_the_page_against_llm_compressor_shows_what_its_lines_say():
    lines, text = lines_of("pruning"), page("llm-compressor").replace("\n", " ")
    runs = [line for line in lines if "seed" not in line]
    assert pruning.table(runs) in page("llm-compressor")
    of = {line["name"]: line for line in runs}
    for cost in ("cpu", "peak"):
        wanda, sparsegpt = (
            of[f"{method}, two passes (pruned)"][cost] / of[f"llm-compressor {method}"][cost]
            for method in ("wanda", "sparsegpt")
        )
        assert f"{wanda:.2f} (Wanda) and {sparsegpt:.2f} (SparseGPT)" in text, cost
    once = [
        line["cpu"] / of[f"llm-compressor {line['name'].split(',')[0]}"]["cpu"]
        for line in runs
        if "one pass" in line["name"]
    ]
    assert f"pass takes {min(once):.2f} to {max(once):.2f} of the time" in text
    rounded = [exp(mean(line["losses"])) for line in lines if line.get("seed")]
    assert len(rounded) == 4 and f"{min(rounded):.2f} to {max(rounded):.2f}" in text
    assert f"{100 * stdev(rounded) / mean(rounded):.2f} %" in text


def test_the_page_on_calibration_shows_what_its_lines_say():
    """And that a second seed changes differences by no more than it says."""
    lines, text = lines_of("calibration"), page("calibration")
    assert calibration_page.texts(lines) in text
    assert all(calibration_page.groups(lines, sparsity) in text for sparsity in (50, 60))
    (dense,) = (line for line in lines if line.get("source") == "dense")
    assert f"dense: {100 * correct(dense).mean():.1f} %" in text
    found = {(line["source"], line["sparsity"], line["seed"]): correct(line) for line in lines if "seed" in line}

    def difference(other: str, sparsity: int, seed: int) -> float:
        return found["chains", sparsity, seed].mean() - found[other, sparsity, seed].mean()

    cells = product(("text", "prompts"), (40, 50, 60))
    moved = [abs(difference(*cell, 0) - difference(*cell, 1)) for cell in cells]
    (most,) = re.findall(r"by at most ([\d.]+) points", text)
    assert float(most) == round(100 * max(moved), 1)
    prompts, english = (100 * difference(other, 50, 0) for other in ("prompts", "text"))
    assert f"at 50 % zeros {prompts:.0f} points above prompts alone" in page("README")
    pruning_page = " ".join((ROOT / "docs/pruning.md").read_text("utf-8").split())
    assert f"its own chains are worth {prompts:.0f} points to the tiny reasoner [compared with prompts" in pruning_page
    assert f"and {english:.0f} with English text, on which it was not trained" in pruning_page


def test_the_page_on_llama_cpps_mixtures_shows_its_perplexities():
    """Each table has the rows of its model, draws of calibration side by side, at the same bytes."""
    lines, text = lines_of("k_quants"), page("k-quants")
    for model, heading in {
        "smollm2": "perplexity of 4,096 held-out",
        "qwen-1.5b": "For the 1.5B none of three matrices",
    }.items():
        found = {(line["type"], line["calibration"]): line for line in lines if line["model"] == model}
        table = text.partition(heading)[2].partition("```")[0]
        plain = found["q4_k_m", "none"]
        drawn = [found["q4_k_m", f"seed-{seed}"] for seed in range(3)]
        assert {line["bytes"] for line in drawn} == {plain["bytes"]} and f"{plain['bytes']:,}" in table
        assert f"{found['dense', 'none']['perplexity']:.3f} |" in table
        assert f"{plain['perplexity']:.3f} |" in table
        assert ", ".join(f"{line['perplexity']:.3f}" for line in drawn) + " |" in table
        if model == "smollm2":  # more than half of what Q4_K_M costs
            dense = found["dense", "none"]["perplexity"]
            assert max(line["perplexity"] for line in drawn) - dense < (plain["perplexity"] - dense) / 2
            cost = mean(line["perplexity"] for line in drawn) - dense
            assert f"costs {cost:.2f} of perplexity instead of {plain['perplexity'] - dense:.2f}" in page("README")
        else:
            assert min(line["perplexity"] for line in drawn) > plain["perplexity"]
    (least,) = (line for line in lines if line["type"] == "q4_0")
    assert f"| `q4_0`, {least['bytes']:,} bytes | {least['perplexity']:.3f} |" in text


def test_the_page_on_engines_says_what_a_harness_takes_for_the_same_budgets():
    lines = lines_of("harness")
    theirs = {line["budgets"][0]: line for line in lines if line["tool"] == "lm-eval"}
    text = " ".join(page("engines").split())
    for own in (line for line in lines if line["tool"] == "prunus"):
        others = [theirs[budget] for budget in own["budgets"]]
        seconds, tokens = (sum(line[key] for line in others) for key in ("cpu_s", "tokens"))
        assert (
            f"| {', '.join(map(str, own['budgets']))} | {seconds:,.0f} | {own['cpu_s']:,.0f} |"
            f" {own['cpu_s'] / seconds:.2f} | {tokens:,} | {own['tokens']:,} | {own['tokens'] / tokens:.2f} |"
        ) in text
    four = next(line for line in lines if line["budgets"] == [64, 128, 256, 512])
    ours = ", ".join(f"{100 * share:.0f}" for share in four["accuracy"].values())
    graded = ", ".join(f"{100 * theirs[budget]['accuracy_by_prunus'][str(budget)]:.0f}" for budget in four["budgets"])
    assert f"solves {ours} of the 100 problems" in text and f"the harness's chains {graded}" in text
