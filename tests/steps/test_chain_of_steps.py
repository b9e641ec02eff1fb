"""Chains of steps: a study makes what the commands write one after the other, and shares what chains begin with."""

from pathlib import Path
from typing import Any

import pytest
from small_study import write_study

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.pruning import drop
from prunus.studies.cells import open_model
from prunus.studies.file import read_study
from prunus.studies.variants import read_info

CHAIN = """\
[[chain]]
steps = [
  { drop = { blocks = "1," } },
  { prune = { sparsity = [0.3, 0.5] } },
  { recover = [false, { epochs = 1, step_tokens = 16 }] },
]
"""


@pytest.mark.thorough
def test_a_chain_is_what_the_steps_write_one_after_the_other(tmp_path, monkeypatch):
    path, out = write_study(tmp_path, CHAIN), tmp_path / "out"
    model = open_model(read_study(path), str(tmp_path / "model"), resolve(tmp_path / "model"))
    names = [f"without-1-wanda-{share}{end}" for share in (30, 50) for end in ("", "-recovered")]
    assert [variant.name for variant in model.variants] == ["dense", *names]
    dropped, original = [], drop.drop

    def noted(*given, **how):
        dropped.append(given)
        return original(*given, **how)

    monkeypatch.setattr(drop, "drop", noted)
    prunus.study(path, out=out, device="cpu")
    assert len(dropped) == 1, "all four begin with it"
    assert not (out / "making").exists()
    made: dict[tuple[Any, ...], str] = {(): model.name}  # by the steps, each of which its command carries out once
    for variant in model.variants[1:]:
        first, pruning, *recovery = variant.steps
        assert isinstance(first, prunus.DropRecipe) and isinstance(pruning, prunus.PruneRecipe)
        for count, step in enumerate(variant.steps):
            source, out_of_step = made[variant.steps[:count]], str(tmp_path / "alone" / f"{len(made)}")
            if variant.steps[: count + 1] in made:
                continue
            if isinstance(step, prunus.DropRecipe):
                prunus.drop(source, out_of_step, step, device="cpu")
            elif isinstance(step, prunus.PruneRecipe):
                prunus.prune(source, out_of_step, step, device="cpu")
            else:
                assert isinstance(step, prunus.RecoverRecipe)
                prunus.recover(source, out_of_step, step, dense=model.name, device="cpu")
            made[variant.steps[: count + 1]] = out_of_step
        info = read_info(out, variant)
        assert info is not None and info.checksum == Checkpoint(made[variant.steps]).checksum() and info.kept == [0, 2]
        if recovery:
            prunus.apply_steps(model.name, tmp_path / "once" / variant.name, variant.steps, device="cpu")
            assert Checkpoint(tmp_path / "once" / variant.name).checksum() == info.checksum
    assert len(made) == 1 + 1 + 2 + 2 and len(list((tmp_path / "alone").iterdir())) == 5, "nothing else is left"
    assert {one.name for one in (tmp_path / "once").iterdir()} == {name for name in names if "recovered" in name}


@pytest.mark.slow
def test_two_steps_of_a_kind_are_two_steps(tmp_path):
    path = write_study(tmp_path, "[[chain]]\nsteps = [{ drop = { blocks = '0,' } }, { drop = { blocks = '0,' } }]\n")
    prunus.study(path, out=tmp_path / "out", device="cpu")
    (variant,) = open_model(read_study(path), str(tmp_path / "model"), resolve(tmp_path / "model")).variants[1:]
    info = read_info(tmp_path / "out", variant)
    assert info is not None and info.kept == [2] and variant.name == "without-0-without-0"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("[]", "write steps ="),
        ("[{ prune = true, drop = true }]", "one key in each"),
        ("[{ purne = true }]", "unknown step 'purne'; did you mean 'prune'"),
        ("[{ prune = { sparsty = 0.5 } }]", "unknown key 'sparsty' of prune; did you mean 'sparsity'"),
        ("[{ prune = 0.5 }]", "'prune' must be true, false or a table, not 0.5"),
        ("[{ recover = true }]", "recover comes first, but .*model is not pruned"),
        ("[{ prune = { sparsity = 0.0 } }, { recover = true }]", "a sparsity of 0 leaves nothing to recover"),
        ("[{ prune = false }]", "there is no step"),
        ("[{ drop = { blocks = '2,' } }, { drop = { blocks = '2,' } }]", "block 2 does not exist; .* blocks 0 to 1"),
    ],
)
def test_what_is_not_sensible_is_refused_in_one_line(steps, words, tmp_path):
    path = write_study(tmp_path, f"[[chain]]\nsteps = {steps}\n")
    with pytest.raises(PrunusError, match=words) as error:
        prunus.study(path, out=tmp_path / "out", device="cpu")
    assert "\n" not in str(error.value) and "small.toml, line" in str(error.value)
    assert not Path(tmp_path / "out").exists()
