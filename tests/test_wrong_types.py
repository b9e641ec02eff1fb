"""Arguments of another type in Python: one line that says what is wrong, before anything is read or written."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong types are what these tests are about.

import pytest

import prunus
from prunus.errors import PrunusError

PLAN, TRACES, PRUNE = prunus.EvalPlan(tasks=("tiny",)), prunus.TraceRecipe(tasks=("tiny-train",)), prunus.PruneRecipe()
LIMITS = {"limits": prunus.Limits(memory="1GB", seconds=5)}
CALLS = {
    "prune": (lambda: prunus.prune("tiny", 5, PRUNE), "out must be a path, not 5 (int)"),
    "quantize": (lambda: prunus.quantize("tiny", 5, prunus.QuantizeRecipe()), "out must be a path, not 5 (int)"),
    "traces": (lambda: prunus.traces("tiny", 5, TRACES), "out must be a path, not 5 (int)"),
    "traces by a plan": (lambda: prunus.traces("tiny", "t.jsonl", PLAN), "traces takes TraceRecipe, not EvalPlan"),
    "choose": (lambda: prunus.choose("tiny", 5, PLAN, **LIMITS), "out must be a path, not 5 (int)"),
    "choose, store": (lambda: prunus.choose("tiny", "o", PLAN, store=5, **LIMITS), "store must be a path, not 5 (int)"),
    "choose, models": (lambda: prunus.choose(5, "o", PLAN, **LIMITS), "models must be a folder, a hub id or several"),
    "choose, limits": (lambda: prunus.choose("tiny", "o", PLAN, limits={"memory": 1}), "takes Limits, not dict"),
    "choose by a recipe": (lambda: prunus.choose("tiny", "o", TRACES, **LIMITS), "takes EvalPlan, not TraceRecipe"),
    "evaluate": (lambda: prunus.evaluate("tiny", PLAN, 5), "store must be a path, not 5 (int)"),
    "steps by a plan": (lambda: prunus.apply_steps("tiny", "o", [PLAN]), "no step is made by EvalPlan: take Prune"),
    "steps of numbers": (lambda: prunus.apply_steps("tiny", "o", [5]), "no step is made by int: take PruneRecipe"),
    "no list of steps": (lambda: prunus.apply_steps("tiny", "o", PRUNE), "steps must be a list of recipes"),
    "steps": (lambda: prunus.apply_steps("tiny", 5, [PRUNE]), "out must be a path, not 5 (int)"),
    "report, store": (lambda: prunus.report(5, "p.html"), "store must be a path, not 5 (int)"),
    "report": (lambda: prunus.report("s.db", 5), "out must be a path, not 5 (int)"),
    "compare": (lambda: prunus.compare(5), "store must be a path, not 5 (int)"),
    "verify": (lambda: prunus.verify(5, "s.db"), "certificate must be a path, not 5 (int)"),
    "export": (lambda: prunus.export(5, "s"), "store must be a path, not 5 (int)"),
    "find": (lambda: prunus.find("tiny", 5, PLAN), "out must be a path, not 5 (int)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_type_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, says = CALLS[name]
    with pytest.raises(PrunusError) as refused:
        call()
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())
