"""Every table that the program prints, on real pseudo-terminals of several widths: names are whole, and lines fit."""

import ast
import random
import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fake_store import make_store
from pseudo_terminal import PseudoTerminal
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

import prunus
from prunus.text_table import TextTable, wrapped

WIDTHS = (40, 60, 80, 100, 120)
INDENTED = 4  # of what goes on in a block
MADE = ["Wanda 20 %", "Magnitude 50 %", "ShortGPT −1 block", "ShortGPT −2 blocks"]
LONG = [
    "DeepSeek-R1-Distill-Qwen-1.5B",
    "OBS width 62.5 % + recovered",
    "日本語のモデル-の-とても長い名前-です-八分の一",
]
COMPARE = """
import prunus
from prunus.cli.common import show_verdicts
comparison = prunus.compare(store, resamples=100)
"""
BY_HAND = f"LONG = {LONG!r}\n"
COMMANDS = {
    "compare": COMPARE + "show = lambda: show_verdicts(comparison)",
    "compare --details": COMPARE + "show = lambda: show_verdicts(comparison, details=True)",
    "print(comparison)": COMPARE + "show = lambda: print(comparison)",
    "eval": """
from prunus import progress
from prunus.reporting.terminal import curve_table
from prunus.results.summary import summarise
from prunus.store.store import Store
with Store(store) as opened:
    curves = [summarise(opened, run.run_id) for run in opened.runs()]
show = lambda: progress.out_console.print(curve_table(curves))
""",
    "native": """
from dataclasses import replace
from prunus import progress
from prunus.reporting.terminal import curve_table
from prunus.results.summary import summarise
from prunus.store.store import Store
with Store(store) as opened:
    curves = [summarise(opened, run.run_id) for run in opened.runs()]
curves = [replace(curve, plan=replace(curve.plan, control="native")) for curve in curves]
show = lambda: progress.out_console.print(curve_table(curves))
""",
    "memory and recipes": COMPARE
    + """
from dataclasses import replace
from prunus.results.cells import RecipeVerdict
from prunus.results.vocabulary import Verdict
from prunus.settings.cache_size import CacheOfChain
cache = CacheOfChain(keys="bfloat16", values="q4_0", per_token=12345, windows={}, constant=0, tokens=8192)
runs = [comparison.base, *comparison.others]
base, *others = (replace(run, bytes={"linears": 123456789}, cache=cache) for run in runs)
recipes = [
    RecipeVerdict(seeds=range(5), runs="abcde", n=20, samples=1, base_accuracy=0.5, difference=-0.1, se=0.02,
                  se_seeds=0.01, se_problems=0.02, freedom=3.5, low=-0.2, high=-0.05, p_better=1.0, p_worse=0.01,
                  p_margin=0.9, verdict=Verdict.WORSE, label=run.label, each=[-0.1] * 5, needed=59)
    for run in others
]
comparison = replace(comparison, base=base, others=others, recipes=recipes)
show = lambda: show_verdicts(comparison, details=True)
""",
    "efforts": "from prunus.cli import main\nshow = lambda: main(['efforts', str(store)])",
    "runs": "from prunus.cli import main\nshow = lambda: main(['runs', str(store)])",
    "print(runs)": "import prunus\nshow = lambda: print(prunus.runs(store))",
    "tasks": "from prunus.cli import main\nshow = lambda: main(['tasks'])",
    "methods": "from prunus.cli import main\nshow = lambda: main(['methods'])",
    "print(methods)": "import prunus\nshow = lambda: print(prunus.methods())",
    "profiles": "from prunus.cli import main\nshow = lambda: main(['profiles'])",
    "inspect": """
import prunus
from prunus.cli.common import show as shown
found = prunus.inspect("tiny", weights=True).to_json() | {"folder": "models/tiny"}
show = lambda: shown(found, False, "inspection_tables")
""",
    "allocate": """
from prunus.cli.common import show as shown
from prunus.pruning.prune.allocate import Allocated, BlockSparsity
blocks = [
    BlockSparsity(block=b, sparsity=b / 12, parts={"attention": b / 24, "mlp": b / 8}, scores={"block": 1 / (b + 3)})
    for b in range(8)
]
found = Allocated(allocation="owl", sparsity=0.3, scope="all", score="outliers of activations", blocks=blocks,
                  evidence={}, warnings=["a score"])
show = lambda: shown(found, False, "allocation_table")
""",
    "study plan": BY_HAND
    + """
from prunus.cli.evaluation import print_plan
from prunus.studies.records import PlannedCell, StudyPlan, Totals
cells = [
    PlannedCell(model="m", variant=name, plan="", run="3f2a9b1c04de", problems=1319, answers=10552, done=0,
                tokens=12_345_678, tokens_expected=None)
    for name in LONG
]
totals = Totals(cells=3, complete=0, answers=31656, done=0, tokens=37_037_034, disk=None)
plan = StudyPlan(name="s", out="o", store="r.db", cells=cells, variants=[], totals=totals, margins=["a loss"],
                 advice=[], gated=[], unknown=[], searches=[])
show = lambda: print_plan(plan)
""",
    "choose": BY_HAND
    + """
from prunus import progress
from prunus.studies.choose.records import ChoiceRow, Chosen
rows = [
    ChoiceRow(model=name, form="gguf-q4_k_m", budget=512, votes=1, run="3f2a9b1c04de", bytes=123456789, seconds=12.3,
              p95=23.4, accuracy=0.5, low=0.2, high=0.8, problems=40, better_by=0.1,
              state="chosen" if name == LONG[0] else "too slow")
    for name in LONG
]
chosen = Chosen(out="o", chosen=rows[0], low=0.0, high=1.0, excess=0.1, choices=rows, claims=["a claim"], notes=[])
show = lambda: progress.put(repr(chosen))
""",
    "find": BY_HAND
    + """
from prunus.results.vocabulary import RungVerdict
from prunus.studies.find.found import Found, RungWord
word = RungVerdict.CANNOT_TELL
rungs = [
    RungWord(name=name, run="1", word=word, why="accuracy, ends by itself", problems=1319, tokens=12345678,
             bytes=123456789)
    for name in LONG
]
found = Found(out=None, model="m", found=None, removed=0.0, ladders={"l": rungs}, tokens=1, dense_tokens=1,
              full_grid_tokens=1, claims=[])
show = lambda: print(found)
""",
}


def names_of(command: str, store: Path) -> list[str]:
    """The names that a command prints."""
    runs = [name.replace("\xa0", " ") for run in prunus.runs(store) for name in (run.run, str(run.model), run.label)]
    methods = [method.name for method in prunus.methods()]
    return {
        "runs": runs,
        "print(runs)": runs,
        "tasks": [task.name for task in prunus.tasks()],
        "methods": methods,
        "print(methods)": methods,
        "profiles": [profile.name for profile in prunus.profiles()],
        "inspect": ["qwen3", "self_attn.q_proj", "mlp.down_proj", "model.embed_tokens.weight", "quantize"],
        "allocate": [*map(str, range(8))],
        "study plan": [*LONG, "3f2a9b1c04de"],
        "choose": [f"{name} gguf-q4_k_m" for name in LONG],
        "find": LONG,
    }.get(command, ["dense", *MADE])


def is_whole(name: str, lines: list[str]) -> bool:
    """Whether a name is on the screen, in one piece or broken after a word or a hyphen, with its pieces aligned."""

    def goes_on(rest: str, number: int, column: int) -> bool:
        line = lines[number][column:] if number < len(lines) else ""
        for cut in [len(rest), *(found.end() for found in re.finditer(r"-| ", rest))]:
            piece = rest[:cut].rstrip(" ")
            more = rest[cut:]
            if re.match(re.escape(piece) + r"(?![^\s:,;.)])", line) and (
                not more or goes_on(more, number + 1, column) or goes_on(more, number + 1, INDENTED)
            ):
                return True
        return False

    starts = ((number, found.start()) for number, line in enumerate(lines) for found in re.finditer(r"\S", line))
    return any(goes_on(name, *start) for start in starts)


def test_a_name_that_was_cut_or_squeezed_is_not_whole():
    assert is_whole("Wanda 20 %", ["  x", "  Wanda 20 % 3"]) and is_whole("a-b c", ["1 a-", "2 b", "  c"])
    assert not is_whole("Wanda 20 %", ["Wanda 20… 3"]) and not is_whole("Wanda 20 %", ["Wan", "da", "20 %"])
    assert not is_whole("Wanda", ["Wanda-20"]) and not is_whole("a b", ["a 1", " b"])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    names = {"wanda-20": "DeepSeek-R1-Distill-Qwen-1.5B-wanda-20"}
    kept = ("tiny", "wanda-20", "magnitude-50", "drop-1", "drop-2")
    folder = tmp_path_factory.mktemp("terminal")
    return make_store(folder / "results.db", names=kept, problems=20, rename=names, texts=())


@pytest.fixture(scope="module")
def terminal() -> Iterator[PseudoTerminal]:
    started = PseudoTerminal()
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.xdist_group("pseudo-terminal")
@pytest.mark.parametrize("command", COMMANDS)
def test_names_are_whole_and_lines_fit_in_terminals_of_every_width(command, store, terminal):
    for columns in WIDTHS:
        lines = [line.replace("\xa0", " ") for line in terminal.lines(COMMANDS[command], store, columns)]
        assert max(map(cell_len, lines)) <= columns, columns
        assert "…" not in "".join(lines)
        lost = [name for name in names_of(command, store) if not is_whole(name, lines)]
        assert not lost, (columns, "\n".join(lines))


@pytest.mark.slow
def test_these_are_all_tables(store, monkeypatch, capsys):
    """Every call that makes a table is reached by COMMANDS, and no other module makes tables in another way."""
    made, real = set[str](), TextTable.__init__

    def noted(self: TextTable, *headings: object, **settings: Any) -> None:
        made.add(sys._getframe(1).f_code.co_name)
        real(self, *headings, **settings)

    monkeypatch.setattr(TextTable, "__init__", noted)
    for code in COMMANDS.values():
        known = {"store": store}
        exec(code, known)  # noqa: S102  as in the terminal
        known["show"]()
    assert capsys.readouterr().out
    calls = set[str]()
    for path in Path(prunus.__file__).parent.rglob("*.py"):
        calls |= {
            function.name
            for function in ast.walk(ast.parse(path.read_text()))
            if isinstance(function, ast.FunctionDef)
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "TextTable"
        }
        assert not re.search(r"rich\.table import .*\bTable\b", path.read_text()), path
    assert made == calls


@pytest.mark.slow
@pytest.mark.xdist_group("pseudo-terminal")
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_bar_shows_the_count_and_the_time_left_in_terminals_of_every_width(columns, terminal):
    code = """
from prunus.progress import Steps
def show():
    for label, unit, total in (("making and evaluating 7 variants", "answers", 11760), ("reading", "blocks", 80)):
        with Steps(label, total, unit) as steps:
            steps.advance(total // 4, note="12 tok/s, sequences 34")
"""
    drawn = "\n".join(terminal.lines(code, Path(), columns)).replace("\r", "\n").split("\x1b[2K")
    for count in ("2940/11760 answers", "20/80 blocks"):
        lines = [line for part in drawn for line in part.split("\n") if count in line]
        assert lines and all(re.search(r"\d:\d\d:\d\d|-:--:--", line) and cell_len(line) <= columns for line in lines)


def shown(table: TextTable, width: int) -> str:
    stream = StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return stream.getvalue()


def test_headings_wrap_first_then_cells_then_names_and_then_rows_become_blocks():
    table = TextTable("run", "the verdict", "points", left=("the verdict",))
    table.add_row("Wanda 20 %", Text("cannot tell", "yellow"), "1.5")
    table.add_row("dense", "base")
    assert shown(table, 30).splitlines() == [
        "run        the verdict points", "Wanda 20 % cannot tell    1.5", "dense      base",
    ]  # fmt: skip
    assert shown(table, 28).splitlines() == [
        "run        the        points", "           verdict", "", "Wanda 20 % cannot        1.5", "           tell", "",
        "dense      base",
    ]  # fmt: skip
    assert shown(table, 22).splitlines()[3:] == [
        "Wanda   cannot     1.5", "20 %    tell", "", "dense   base",
    ]  # fmt: skip
    assert shown(table, 18).splitlines() == [
        "Wanda 20 %", "  the verdict:", "    cannot tell", "  points: 1.5", "dense",
        "  the verdict:", "    base",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_at_any_width(seed):
    """Random tables: every line fits, and the letters of every cell are there, whatever the width."""
    draw = random.Random(seed)
    letters = "abcdefgh日本 -[]()"
    table = TextTable("name", *(f"head {k}" for k in range(draw.randint(1, 5))), left=("head 0",))
    rows = [["".join(draw.choices(letters, k=draw.randint(0, 30))) for _ in table.headings] for _ in range(4)]
    for row in rows:
        table.add_row(*row)
    for width in range(12, 130, 7):
        text = shown(table, width)
        assert all(cell_len(line) <= width for line in text.splitlines())
        for letter in letters.replace(" ", ""):
            wanted = sum(cell.count(letter) for row in rows for cell in row)
            cells = text if ":" in text else text.partition("\n")[2]
            headings = sum(heading.plain.count(letter) for heading in table.headings)
            assert wanted <= cells.count(letter) + headings and text.count(letter) >= wanted, (letter, width, text)


def test_text_is_broken_at_words_then_hyphens_then_anywhere():
    assert wrapped("loses less than", 9) == ["loses", "less than"]
    assert wrapped("−1.3 [−2.2, −0.5]", 13) == ["−1.3", "[−2.2, −0.5]"]
    assert wrapped("DeepSeek-R1-Distill", 12) == ["DeepSeek-R1-", "Distill"]
    assert wrapped("abcdefgh", 3) == ["abc", "def", "gh"] and wrapped("日本語", 4) == ["日本", "語"]
    assert wrapped("", 5) == [""] and wrapped("a\nb c", 9) == ["a", "b c"]
