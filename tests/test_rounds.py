"""Pruning in rounds is pruning, recovering and drawing chains by hand, one after the other; zeros never come back."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from tiny_models import make_model

import prunus
from prunus import rounds as in_rounds
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.recipes import PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.results.labels import label

RECIPE = PruneRecipe(sparsity=0.64, calibration="tiny", samples=8)
RECOVERY = RecoverRecipe(calibration="tiny", calibration_tokens=300, epochs=1, step_tokens=128)
CHAINS = TraceRecipe(("tiny-train",), limit=6, max_tokens=24, seed=5, batch_size=6, profile="tiny", temperature=1.0)
SERVED = replace(CHAINS, backend="openai")
SERVER = EngineOptions(url="http://localhost:8000/v1")


@pytest.fixture
def model(tmp_path_factory):
    """A random one of three blocks, whose rows can lose 40 % and 64 % of their weights to the last one."""
    return make_model(
        tmp_path_factory.mktemp("dense") / "model",
        "qwen3",
        hidden_size=100,
        intermediate_size=200,
        head_dim=50,
        max_position_embeddings=1024,
    )


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_hand(model, folder, drawn_from):
    """Two rounds to 64 %: the first to 40 %, which leaves 0.6 of the weights, and then 0.6 of those."""
    (folder / "hand").mkdir()
    one, two, file = folder / "hand" / "1", folder / "hand" / "2", folder / "hand" / "chains.jsonl"
    prunus.prune(model, folder / "hand" / "1.pruned", replace(RECIPE, sparsity=0.4))
    prunus.recover(folder / "hand" / "1.pruned", one, RECOVERY)
    prunus.traces(one if drawn_from == "recovered" else model, file, replace(CHAINS, seed=6))
    held = sum(len(json.loads(line)["token_ids"]) for line in file.read_text().splitlines())
    prunus.prune(one, folder / "hand" / "2.pruned", replace(RECIPE, calibration=f"traces:{file}"))
    asked = replace(RECOVERY, calibration=f"traces:{file}", calibration_tokens=min(300, held))
    prunus.recover(folder / "hand" / "2.pruned", two, asked, dense=model)
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("drawn_from", ["recovered", "dense"])
def test_two_rounds_are_those_done_by_hand(model, tmp_path, drawn_from):
    told = prunus.prune_in_rounds(
        model, tmp_path / "out", RECIPE, RECOVERY, rounds=2, chains=CHAINS, drawn_from=drawn_from
    )
    one, two = by_hand(model, tmp_path, drawn_from)
    made, first, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", one, two))
    assert all((made[name] == expected[name]).all() for name in expected) and set(made) == set(expected)
    matrices = [name for name in made if name.endswith("_proj.weight")]
    assert matrices and all(not made[name][first[name] == 0].any() for name in matrices)
    zeros = sum(int((made[name] == 0).sum()) for name in matrices) / sum(made[name].numel() for name in matrices)
    assert zeros == pytest.approx(0.64, abs=0.005)
    history = json.loads((tmp_path / "out" / "prunus.json").read_text())["history"]
    assert [step["action"] for step in history] == ["prune", "recover"] * 2
    assert [step["round"]["number"] for step in history] == [1, 1, 2, 2]
    assert history[3]["round"]["chains"]["from"] == drawn_from and history[3]["round"]["chains"]["count"] == 6
    assert [(one["number"], one["sparsity"]) for one in told["rounds"]] == [(1, 0.4), (2, 0.64)]
    assert label(history) == "Wanda 64\xa0% + recovered in 2 rounds"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "hand"}


@pytest.mark.slow
def test_interrupted_rounds_go_on_to_the_same_bytes(model, tmp_path, monkeypatch):
    def call():
        return prunus.prune_in_rounds(model, tmp_path / "out", RECIPE, RECOVERY, rounds=2, chains=CHAINS)

    call()
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for name, when in (("recover", 1), ("traces", 1), ("prune", 1), ("recover", 1), ("replace_folder", 1)):
        original, calls = getattr(in_rounds, name), []

        def stop(*args, name=name, when=when, original=original, calls=calls, **settings):
            calls.append(args)
            if len(calls) == when:
                raise KeyboardInterrupt(name)
            return original(*args, **settings)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(in_rounds, name, stop)
            call()
        assert not (tmp_path / "out").exists()
    with pytest.raises(PrunusError, match=r"out\.rounds holds unfinished rounds of another run"):
        prunus.prune_in_rounds(model, tmp_path / "out", RECIPE, RECOVERY, rounds=3, chains=CHAINS)
    call()
    assert contents(tmp_path / "out") == whole and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"rounds": 1}, "at least 2, not 1"),
        ({}, {"drawn_from": "me"}, "recovered or dense, not from 'me'"),
        ({"method": "sparsegpt"}, {}, "sparsegpt changes the weights that it keeps"),
        ({"update": "obs"}, {}, "update obs changes"),
        ({"pattern": "2:4", "sparsity": 0.5}, {}, "pattern 2:4 cannot rise"),
        ({"sparsity": 0.0}, {}, "nothing to recover"),
        ({"calibration": "gone.jsonl"}, {}, "gone.jsonl cannot be read"),
        ({}, {"chains": TraceRecipe(("tiny",))}, "in the evaluation set tiny"),
        ({}, {"chains": TraceRecipe(("none",))}, "none"),
        ({}, {"chains": SERVED, "drawn_from": "dense"}, "openai needs the server's address"),
        (
            {},
            {"chains": SERVED, "engine": SERVER},
            "a server draws chains of the model that it serves; draw from dense",
        ),
        ({}, {"engine": SERVER}, "url is for the backend openai, not for hf"),
    ],
)
def test_what_cannot_be_done_in_rounds_is_one_line(tmp_path, changes, settings, words):
    with pytest.raises(PrunusError, match=words) as raised:
        prunus.prune_in_rounds(
            "tiny", tmp_path / "out", replace(RECIPE, **changes), **{"rounds": 2, "chains": CHAINS} | settings
        )
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_dry_run_tells_the_sparsities(tmp_path):
    told = prunus.prune_in_rounds("tiny", tmp_path / "out", RECIPE, rounds=2, chains=CHAINS, dry_run=True)
    assert told["rounds"] == "40 %, 64 %" and not list(tmp_path.iterdir())


def test_chains_are_drawn_by_the_engine_that_is_asked_for(tmp_path, monkeypatch):
    calls = []

    def draw(*args, **settings):
        calls.append((args, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(in_rounds, "traces", draw)
    monkeypatch.setattr(in_rounds, "prune", lambda *_, **__: None)
    monkeypatch.setattr(in_rounds, "recover", lambda *_, **__: {})
    settings = {"rounds": 2, "chains": SERVED, "drawn_from": "dense", "engine": SERVER}
    with pytest.raises(KeyboardInterrupt):
        prunus.prune_in_rounds("tiny", tmp_path / "out", RECIPE, RECOVERY, **settings)
    (((model, _, recipe), told),) = calls
    assert model == "tiny" and recipe == replace(SERVED, seed=CHAINS.seed + 1) and told["engine"] == SERVER
