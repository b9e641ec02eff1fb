"""Methods, tasks and profiles of an installed package: its metadata lie in a folder on sys.path, as pip leaves them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm_processes
from tiny_models import make_model, random_rows

import prunus

pytestmark = warm_processes.in_one_worker  # the fixture is made once

DECLARED = """
from pathlib import Path

HALFWAY = {"source": "a test", "description": "zero by weight and input", "needs": "norms", "group": "row",
           "prune": "own_package.code:prune"}
LATE = {**HALFWAY, "prune": "own_package.code:nowhere"}
SUMS = {"source": "a test", "kind": "integer", "description": "sums", "load": "own_package.code:sums", "problems": 9}
BRIEF = Path(__file__).with_name("brief.toml")
"""
CODE = """
import torch

from prunus.evaluation.tasks.problem import Problem
from prunus.pruning.masks import zero_lowest


def prune(weight_OI, inputs, target):
    return zero_lowest(weight_OI, weight_OI.abs().float() * inputs.norm_I.float().sqrt(), target, "row")


def sums():
    return [Problem(f"own-sums/{a}", "own-sums", f"{a}+{a}", str(2 * a), "integer") for a in range(1, 10)]
"""
POINTS = """
[prunus.methods]
own-halfway = own_package:HALFWAY
own-late = own_package:LATE
own-broken = own_package:NOTHING
own-torch = own_package.heavy:HALFWAY
own-using = own_package.code:prune
wanda = own_package:HALFWAY
[prunus.tasks]
own-sums = own_package:SUMS
own-no-sums = nowhere:SUMS
[prunus.profiles]
own-brief = own_package:BRIEF
own-text = own_package:HALFWAY
"""
SCRIPT = """
import json
import sys
from pathlib import Path
sys.path.insert(0, "site")
import prunus
from prunus import plugins
from prunus.evaluation.profiles.detection import profile_named

def refused(make):
    try:
        make()
    except prunus.PrunusError as error:
        return str(error)

def recipe(name, **more):
    return prunus.PruneRecipe(method=name, sparsity=0.5, calibration="rows.jsonl", sequences=4, **more)

made = prunus.prune("model", "out", recipe("own-halfway"))
stored = recipe("own-halfway").to_json()
plan = prunus.EvalPlan(tasks=("own-sums",), budgets=(0, 4), limit=2, profile="own-brief")
run = prunus.evaluate("tiny", plan, "results.db")
said = {
    "json": stored,
    "same": prunus.PruneRecipe.from_json(stored) == recipe("own-halfway"),
    "other": refused(lambda: prunus.PruneRecipe.from_json({**stored, "package": "own-methods 0.9"})),
    "late": refused(lambda: prunus.prune("model", "late", recipe("own-late"))),
    "broken": refused(lambda: recipe("own-broken")),
    "no-sums": refused(lambda: prunus.evaluate("tiny", prunus.EvalPlan(tasks=("own-no-sums",), budgets=(4,)), "x.db")),
    "text": refused(lambda: prunus.EvalPlan(tasks=("tiny",), profile="own-text")),
    "wanda": prunus.PruneRecipe(method="wanda").to_json().get("package"),
    "hash": prunus.PruneRecipe().hash,
    "lists": [one.name for listed in (prunus.methods(), prunus.tasks(), prunus.profiles()) for one in listed],
    "answer": profile_named("own-brief").answer_tokens,
    "rows": [one.rows for one in prunus.runs("results.db")],
}
open("said.json", "w").write(json.dumps(said))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with a package in `site`, and with what was made by it."""
    folder = tmp_path_factory.mktemp("installed")
    package, metadata = folder / "site" / "own_package", folder / "site" / "own_methods-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text(DECLARED)
    (package / "code.py").write_text(CODE)
    (package / "heavy.py").write_text("import torch" + DECLARED)
    (package / "brief.toml").write_text('# Short.\nformat = 1\nextends = "tiny"\n[answer]\ntokens = 3\n')
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-methods\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    make_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(f'{{"token_ids": {ids}}}\n' for ids in random_rows(4, 16)))
    status, printed = warm_processes.run_with(Path(prunus.__file__).parents[1], SCRIPT, folder)
    assert status == 0, printed
    return folder


@pytest.mark.slow
def test_a_method_of_a_package_prunes_and_its_version_is_recorded(installed):
    from prunus.checkpoint.checkpoint import Checkpoint

    said = json.loads((installed / "said.json").read_text())
    old, new = Checkpoint(installed / "model"), Checkpoint(installed / "out")
    for index in range(old.blocks):
        for linear in old.linears(index):
            before, after = (each.read_weight(index, f"{linear.name}.weight") for each in (old, new))
            assert ((after == 0).sum(dim=1) == after.shape[1] // 2).all()
            assert (after[after != 0] == before[after != 0]).all()
    assert new.manifest.data["history"][-1]["recipe"] == said["json"] and said["json"]["package"] == "own-methods 1.0"
    assert said["same"] and said["hash"] == prunus.PruneRecipe().hash, "recipes of other methods keep their hash"
    assert said["other"] == "method own-halfway was that of own-methods 0.9, and here it is that of own-methods 1.0"


@pytest.mark.slow
def test_a_task_and_a_profile_of_a_package_are_evaluated(installed):
    said = json.loads((installed / "said.json").read_text())
    assert said["rows"] == [4] and said["answer"] == 3
    assert {"own-halfway", "own-sums", "own-brief"} < {*said["lists"]} and said["lists"].count("wanda") == 1
    assert not {"own-broken", "own-no-sums", "own-text"} & {*said["lists"]}


@pytest.mark.slow
def test_what_is_broken_is_one_line_that_names_the_package(installed):
    said = json.loads((installed / "said.json").read_text())
    start = "{} of the package own-methods 1.0 ({}) cannot be used: "
    assert said["late"].startswith("own_package.code:nowhere of the package own-methods 1.0 cannot be imported: ")
    assert said["broken"].startswith(start.format("own-broken", "prunus.methods") + "AttributeError")
    assert said["no-sums"].startswith(start.format("own-no-sums", "prunus.tasks") + "ModuleNotFoundError")
    assert said["text"].startswith(start.format("own-text", "prunus.profiles") + "TypeError")
    assert all("\n" not in said[key] for key in ("late", "broken", "no-sums", "text"))
    assert said["wanda"] is None, "no package replaces a method of Prunus"


@pytest.mark.slow
def test_help_names_methods_of_packages_and_imports_no_torch(installed):
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop()); from prunus import plugins; from prunus.recipes import"
        " PruneRecipe; from prunus.settings import settings_of; print(settings_of(PruneRecipe)['method'].choices,"
        " 'torch' in sys.modules, plugins.problem(plugins.METHODS, 'own-torch'), plugins.problem(plugins.METHODS,"
        " 'own-using'))"
    )
    points = installed / "site" / "own_methods-1.0.dist-info" / "entry_points.txt"
    points.write_text(POINTS.replace("own-torch = own_package.heavy:HALFWAY\nown-using = own_package.code:prune\n", ""))
    words = [sys.executable, "-c", code, str(installed / "site")]
    without = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "'own-halfway'" in without.stdout and "False None None" in without.stdout, without.stderr
    points.write_text(POINTS)
    imports = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "own_package.heavy imports torch; name the functions by texts" in imports.stdout, imports.stderr
    assert "own_package.code imports Prunus" in imports.stdout


BLOCKED = """
import importlib.metadata, sys
missing = sys.argv.pop()
version = importlib.metadata.version

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version_of(name):
    if name == missing:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

sys.meta_path.insert(0, Missing())
importlib.metadata.version = version_of
from prunus.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["click", "math-verify"])
def test_a_missing_dependency_is_one_line(missing):
    words = [sys.executable, "-c", BLOCKED, "tasks", missing]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"error: the package {missing} is not installed, which Prunus needs")
    assert done.returncode and "Traceback" not in done.stderr


@pytest.mark.slow
def test_threads_that_wait_sleep_unless_the_user_says_otherwise():
    code = "import os; import prunus; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in __import__('sys').modules)"
    plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for given, count in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=plain | given, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [count, "False"]
