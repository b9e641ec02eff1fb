"""The examples in the docstrings of the API: each is run, one after the other, in a folder that has what they read."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import prunus
from prunus.pruning.calibration import data

DATA = Path(__file__).parent / "data"
# In this order each finds what it reads: a folder or file that an earlier one wrote, or that `folder` makes.
ORDER = (
    *("prune", "recover", "stats", "expert_stats", "experts", "drop", "width", "quantize", "dequantize", "apply_steps"),
    *(
        "allocate",
        "inspect",
        "perplexity",
        "methods",
        "tasks",
        "profiles",
        "show_profile",
        "evaluate",
        "traces",
        "runs",
    ),
    *(
        "compare",
        "efforts",
        "plan_refine_efforts",
        "refine_efforts",
        "open",
        "report",
        "card",
        "export",
        "import_",
        "regrade",
        "plan_find",
        "find",
        "verify",
    ),
    *("plan", "plan_choose", "plan_study", "study", "report_study"),
)
NOT_RUN = {
    "choose": "it makes and measures several forms; tests/studies/choose runs it with fewer",
    "demo": "it takes a minute; `make demo` runs it in CI",
    "gguf": "GGUF has no name for the way in which the built-in model's tokenizer splits words",
    "view": "it needs the extra `view`, and without export it serves a page until it is stopped",
}
STUDY = """\
models = ["tiny"]
[eval]
tasks = ["tiny"]
budgets = [16, 32]
limit = 6
[[prune]]
method = "magnitude"
sparsity = 0.2
"""


def examples(name: str) -> list[str]:
    """The indented blocks of the docstring of a function, or with an empty name of the package."""
    text = inspect.getdoc(getattr(prunus, name) if name else prunus) or ""
    blocks = re.findall(r"(?:\A|\n\n)((?:    .*\n|\n(?=    ))+)", text + "\n")
    return [dedent(block) for block in blocks]


def functions() -> list[str]:
    return [name for name in (*prunus.__all__, "open") if inspect.isfunction(getattr(prunus, name))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, where eight calibration sequences are enough, which otherwise take most of the time."""
    from_lines: Any = data._from_lines  # pyright: ignore[reportPrivateUsage]

    def few(found: Any, asked: Any, model: Any) -> Any:
        return from_lines(found, replace(asked, sequences=min(8, asked.sequences)), model)

    monkeypatch.setattr(data, "_from_lines", few)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "tiny.toml").write_text(STUDY)
    (tmp_path / "held-out.txt").write_text("7+5=12, 12-4=8, 8+9=17. " * 20)
    (log,) = (DATA / "imported/lm_eval/alpha").glob("samples_sums_*")
    (tmp_path / "samples_gsm8k.jsonl").write_text(log.read_text().replace("last-number", "strict-match"))
    return tmp_path


def test_every_function_has_an_example():
    assert sorted([*ORDER, *NOT_RUN]) == sorted(functions())
    assert [name for name in functions() if f"prunus.{name}(" not in "".join(examples(name))] == []


def run_example(name: str) -> None:
    """Run the example of a function, or of the package, with less thinking."""
    (code,) = examples(name)
    code = re.sub(r"(budgets=\([\d, ]*)256", r"\g<1>72", code)
    exec(compile(code, f"the example of prunus.{name}", "exec"), {"prunus": prunus})  # noqa: S102


@pytest.mark.thorough
@pytest.mark.slow
def test_every_example_runs(folder: Path):
    for name in ORDER:
        run_example(name)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_example_of_the_package_runs(folder: Path):
    run_example("")
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize("name", NOT_RUN)
def test_the_other_examples_call_what_there_is(name: str):
    calls = [node for code in examples(name) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (call,) = [one for one in calls if ast.unparse(one.func) == f"prunus.{name}"]
    given = {str(one.arg): one.value for one in call.keywords}
    inspect.signature(getattr(prunus, name)).bind(*call.args, **given)
