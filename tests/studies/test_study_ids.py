"""Names and ids of a study's cells stay, so that a study that was begun goes on.

`data/study/ids.json` has name and key of every variant, and for each plan the run ids of the dense model and of the
first variant; all others follow from key and plan in the same way.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from prunus.checkpoint.resolve import resolve
from prunus.studies.cells import open_model
from prunus.studies.file import read_study

EXAMPLES, DATA = Path(__file__).parents[2] / "examples", Path(__file__).parents[1] / "data" / "study"
# What paper.toml asks for that is not on this disk, and longer than the built-in model's context.
ELSEWHERE = {
    '["simplescaling/s1.1-7B", "Qwen/Qwen3-8B"]': '["tiny"]',
    '["aime24", "gpqa_diamond", "amc23", "math500"]': '["tiny"]',
    "[512, 1024, 2048, 4096, 8192]": "[16, 64]",
}


def ids(file: Path) -> dict[str, Any]:
    study = read_study(file)
    model = open_model(study, "tiny", resolve("tiny"))
    runs = [[cell.run_id for cell in model.cells if cell.plan == plan] for plan in range(len(study.plans))]
    return {"variants": {variant.name: variant.key for variant in model.variants}, "runs": [few[:2] for few in runs]}


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_recovery_is_part_of_the_id_by_what_has_an_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '{"text": "text of a file"}\n'
    for name, content in (("a", text), ("b", text), ("c", text * 2)):
        Path(f"{name}.jsonl").write_text(content)

    def key(recover: str) -> str:
        file = Path("study.toml")
        table = f'[[prune]]\nsparsity = 0.5\ncalibration = "a.jsonl"\nrecover = {recover}\n'
        file.write_text('models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = [16]\n' + table)
        return open_model(read_study(file), "tiny", resolve("tiny")).variants[1].key

    usual = key("true")
    assert usual == key("{}") == key('{calibration = "b.jsonl"}') == key("{rate = 0.01}")
    others = ["false", "{epochs = 2}", "{seed = 1}", '{calibration = "c.jsonl"}', "{sequences = 3}"]
    assert len({usual, *map(key, others)}) == 1 + len(others)
    assert key("{calibration_tokens = 50}") == key("{calibration_tokens = 50, sequences = 3}")
