"""A model, a task and rungs that answer by a script: searches whose decisions are known."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import ScriptedBackend
from tiny_chains import TOKENIZER
from tiny_models import make_model, random_rows

from prunus.pruning.calibration.data import Calibration
from prunus.recipes import EvalPlan
from prunus.studies.cells import Variant, cell_name
from prunus.studies.engine import StudyEngine

PROBLEMS = 200
PLACE = re.compile(rb'"(link|content)": ?"[0-9a-f]{64}"')
PLAN = EvalPlan(tasks=("sums.jsonl",), budgets=(8, 16), answer_tokens=8, profile="tiny", batch_size=20)
CALIBRATION: dict[str, Any] = {"calibration": "text.jsonl", "sequences": 8, "seqlen": 16}
END, RIGHT, WRONG, ENDLESS = (
    TOKENIZER.encode(text, add_special_tokens=False)
    for text in ("</think>\n\n", "7<|im_end|>", "8<|im_end|>", "1\n" * 50)
)
COMMAND = [
    *("find", "model", "out", "--task", "sums.jsonl", "--budgets", "8,16", "--answer-tokens", "8"),
    *("--profile", "tiny", "--method", "magnitude", "--store", "rows.db", "--margin", "0.1", "--stop-margin", "0.1"),
]
# What each variant does: the share of chains that are wrong, and of those that never end although they are right.
DOES = {
    "dense": (0, 0),
    "magnitude-30": (1, 0),
    "magnitude-45": (0, 1),
    "shortgpt-1": (1, 0),
    "wanda-dense-20": (0.5, 0),
    "dense · harsh": (1, 0),
    "magnitude-20 · harsh": (0, 1),
}


def fill(folder: Path) -> None:
    """Write a random model, text for its calibration, and a task of 200 problems, all of which have the answer 7."""
    make_model(folder / "model", family="qwen2")
    lines = ({"id": f"p{n}", "problem": f"{n} + 1 =", "answer": "7"} for n in range(PROBLEMS))
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "text.jsonl").write_text(Calibration(random_rows(8, 16), "random", []).to_jsonl())


def script(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Let rungs do what DOES says instead of running their models; returns the chains of each, which it counts."""
    asked: Counter[str] = Counter()

    def counted(name: str, prompt: Sequence[int], seed: int) -> list[int]:
        asked[name] += END[0] not in prompt
        return replay(name, prompt, seed)

    def load(self: StudyEngine, _: Any, variant: Variant, __: Any) -> ScriptedBackend:
        return ScriptedBackend(partial(counted, cell_name(variant.name, self.grid.servings[self.serving].name)))

    patch.setattr(StudyEngine, "load", load)
    return asked


def replay(name: str, prompt: Sequence[int], seed: int) -> list[int]:
    """What a rung of this name writes, by DOES."""
    wrong, endless = DOES.get(name, (0, 0))
    answer = (WRONG if random.Random(seed).random() < wrong else RIGHT) + ENDLESS
    if END[0] in prompt:  # the thinking was cut
        return answer
    return ENDLESS if random.Random(-seed).random() < endless else END + answer


class Stop(BaseException):
    """What an interruption raises in a test."""


def content(folder: Path | str) -> dict[str, bytes]:
    return {path.name: without_place(path) for path in Path(folder).iterdir()}


@contextmanager
def stopped(module: Any, name: str, calls: int = 0, after: bool = False) -> Iterator[None]:
    """Within the context, a function raises Stop once it was called so often; after: when it has done its work."""
    original, done = getattr(module, name), 0

    def stopping(*args: Any, **rest: Any) -> Any:
        nonlocal done
        done += 1
        if done <= calls:
            return original(*args, **rest)
        if after:
            original(*args, **rest)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, name, stopping)
        yield


def without_place(path: Path) -> bytes:
    """The bytes of a file of a search, but for its place in the log of its store, which has times."""
    return PLACE.sub(rb'"\1": ""', path.read_bytes())
