"""Names and ids of a study's cells are those of earlier versions, so that a study begun with one goes on with another.

`data/study/ids.json` was written by the code at 97f2ae7: name and key of every variant, and for each plan the run ids
of the dense model and of the first variant (all others follow from key and plan in the same way).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from prunus.checkpoint.resolve import resolve
from prunus.study.cells import open_model
from prunus.study.file import read_study

EXAMPLES, DATA = Path(__file__).parents[1] / "examples", Path(__file__).parent / "data" / "study"
# What paper.toml asks for that is not on this disk, and longer than the built-in model's context.
ELSEWHERE = {
    '["simplescaling/s1.1-7B", "Qwen/Qwen3-8B"]': '["tiny"]',
    '["aime24", "gpqa_diamond", "amc23", "math500"]': '["tiny"]',
    "[512, 1024, 2048, 4096, 8192]": "[16, 64]",
}


def ids(file: Path) -> dict[str, Any]:
    study = read_study(file)
    model = open_model(study, "tiny", resolve("tiny"))
    runs = [[cell.work.run_id for cell in model.cells if cell.plan == plan] for plan in range(len(study.plans))]
    return {"variants": {variant.name: variant.key for variant in model.variants}, "runs": [few[:2] for few in runs]}


@pytest.mark.parametrize("name", ["tiny", "paper", "every"])
def test_cells_keep_their_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = DATA / "every_table.toml" if name == "every" else EXAMPLES / f"{name}.toml"
    text = source.read_text()
    for old, new in ELSEWHERE.items() if name == "paper" else ():
        assert old in text
        text = text.replace(old, new)
    file = Path("study.toml")
    file.write_text(text)
    Path("text.jsonl").write_text('{"text": "text of a file"}\n')
    Path("scores.json").write_text("{}\n")
    Path("problems.jsonl").write_text('{"problem": "1+1", "answer": "2", "kind": "integer", "id": "a"}\n')
    assert ids(file) == json.loads((DATA / "ids.json").read_text())[name]
