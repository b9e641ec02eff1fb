"""Checkpoints: reading and writing safetensors, one block outside its model, identity, manifest."""

import json
import shutil

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model, random_rows, runner_of
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint import resolve as resolve_module
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve, tiny_folder
from prunus.checkpoint.safetensors_file import OpenFile, entry_of, read_header, write_file
from prunus.errors import PrunusError
from prunus.manifest import Manifest, StepRecord, next_manifest
from prunus.pruning.calibration.hidden_states import HiddenStates


def block_outputs(folder, ids):
    """What transformers' own whole model gives after each block, before the final norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.inference_mode():
        model(input_ids=torch.tensor(ids))
    return outputs


def streamed_outputs(folder, sequences):
    """Hidden states after each block, in the order of HiddenStates (by length)."""
    checkpoint = Checkpoint(folder)
    runner = runner_of(checkpoint)
    with torch.inference_mode():
        hidden = HiddenStates(runner, sequences, None)
        for index in range(checkpoint.blocks):
            block = runner.make_block(index, checkpoint.read_block(index))
            for batch, rows in hidden.batches():
                rows.copy_(runner.run_block(block, rows, batch))
            yield hidden.states_SW.clone()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_hidden_states_equal_the_whole_model(tmp_path, family, tied):
    folder = make_model(tmp_path / "m", family, tied=tied)
    rows = random_rows(5, 40)
    for ours, theirs in zip(streamed_outputs(folder, rows), block_outputs(folder, rows), strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_sequences_of_different_lengths_do_not_touch_each_other(tmp_path):
    folder = make_model(tmp_path / "m", "qwen3")
    rows = [row[:length] for row, length in zip(random_rows(6, 60), (60, 1, 17, 60, 17, 33), strict=True)]
    streamed = list(streamed_outputs(folder, rows))[-1]
    expected = [block_outputs(folder, [row])[-1][0] for row in sorted(rows, key=len)]
    torch.testing.assert_close(streamed, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_windows_are_honoured(tmp_path, family):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    folder = make_model(tmp_path / "m", family, **window)
    assert Checkpoint(folder).config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    rows = random_rows(3, 30)
    for ours, theirs in zip(streamed_outputs(folder, rows), block_outputs(folder, rows), strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_llama3_rope_scaling_is_honoured(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    folder = make_model(tmp_path / "m", "llama", rope_parameters=rope, attention_bias=True, mlp_bias=True)
    rows = random_rows(2, 100)
    for ours, theirs in zip(streamed_outputs(folder, rows), block_outputs(folder, rows), strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_rope_that_depends_on_the_length_forgets_longer_sequences(tmp_path):
    """In every block but the first the short sequence comes after the long one."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    folder = make_model(tmp_path / "m", "llama", rope_parameters=rope, max_position_embeddings=32)
    rows = [row[:length] for row, length in zip(random_rows(2, 100), (40, 100), strict=True)]
    expected = [block_outputs(folder, [row]) for row in sorted(rows, key=len)]  # each by a model of its own
    for ours, theirs in zip(streamed_outputs(folder, rows), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.cat([one[0] for one in theirs]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_read_are_those_of_the_safetensors_package(tmp_path, dtype):
    one = make_model(tmp_path / "one", dtype=dtype)
    many = make_model(tmp_path / "many", dtype=dtype, shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    expected = load_file(one / "model.safetensors")
    for folder in (one, many):
        checkpoint = Checkpoint(folder)
        assert sorted(checkpoint.tensors) == sorted(expected)
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert checkpoint.read(name).dtype == dtype
    rows = [5, 0, 367, 5]
    name = "model.embed_tokens.weight"
    assert torch.equal(Checkpoint(one).tensors[name].read_rows(rows), expected[name][rows])
    assert Checkpoint(one).parameters == sum(t.numel() for t in expected.values())


def test_checksum_is_of_the_weights_not_of_the_files(tmp_path):
    one = make_model(tmp_path / "one")
    many = make_model(tmp_path / "many", shard_size="20KB")
    other = make_model(tmp_path / "other", seed=1)
    assert Checkpoint(one).checksum() == Checkpoint(many).checksum() != Checkpoint(other).checksum()
    before = Checkpoint(one).checksum()
    tensors = load_file(one / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, one / "model.safetensors", {"format": "pt"})
    assert Checkpoint(one).checksum() != before


def test_checksum_is_what_the_format_says_however_its_parts_were_come_by(tmp_path):
    folder = make_model(tmp_path / "m", "qwen2", dtype=torch.bfloat16)
    total = blake3()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        data = blake3(tensor.view(torch.int16).numpy().tobytes()).digest()
        total.update(f"{name}\0BF16\0{list(tensor.shape)}\0".encode() + data)
    checkpoint = Checkpoint(folder)
    parts = {checkpoint.digest(index) for index in (2, None, 0, 1)}
    assert len(parts) == 4
    assert checkpoint.checksum() == total.hexdigest()


def test_fingerprint_tells_models_apart_and_copies_not(tmp_path):
    folder = make_model(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").touch()
    other = make_model(tmp_path / "other", seed=1)
    many = make_model(tmp_path / "many", shard_size="20KB")
    seen = [Checkpoint(path).fingerprint() for path in (folder, tmp_path / "copy", many, other)]
    assert seen[0] == seen[1] == seen[2] != seen[3]


def test_files_written_are_read_by_the_safetensors_package(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(3, 5, generator=generator),
        "a": torch.randn(7, generator=generator).bfloat16(),
        "odd": torch.randn(5, generator=generator).half(),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "empty": torch.empty(0, 3),
    }
    write_file(tmp_path / "first.safetensors", tensors)
    stored = read_header(tmp_path / "first.safetensors")
    write_file(tmp_path / "second.safetensors", {**stored, "renamed": stored["a"]})
    for file in ("first", "second"):
        with safe_open(tmp_path / f"{file}.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name, tensor in tensors.items():
                assert torch.equal(opened.get_tensor(name), tensor)
                assert opened.get_tensor(name).dtype == tensor.dtype
    assert torch.equal(load_file(tmp_path / "second.safetensors")["renamed"], tensors["a"])
    write_file(tmp_path / "again.safetensors", tensors)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()


def test_a_file_that_cannot_be_written_is_not_there(tmp_path):
    with pytest.raises(KeyError):
        write_file(tmp_path / "x.safetensors", {"a": torch.zeros(3, dtype=torch.complex64)})
    missing = read_header(make_model(tmp_path / "m") / "model.safetensors")["model.norm.weight"]
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "x.safetensors", {"a": missing})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_places_filled_one_by_one_make_the_same_file(tmp_path):
    tensors = {"b": torch.ones(3, 5), "a": torch.arange(7).bfloat16(), "empty": torch.empty(0, 3)}
    write_file(tmp_path / "at once", tensors)
    entries = {name: entry_of(tensor) for name, tensor in tensors.items()}
    assert OpenFile(tmp_path / "file", entries).fresh
    for name in ("a", "empty", "b"):
        again = OpenFile(tmp_path / "file", entries)
        assert not again.fresh
        again.write({name: tensors[name]})
    assert (tmp_path / "file").read_bytes() == (tmp_path / "at once").read_bytes()
    with pytest.raises(AssertionError, match="b does not match its entry"):
        again.write({"b": torch.ones(5, 3)})
    assert OpenFile(tmp_path / "file", entries | {"c": entries["a"]}).fresh


@pytest.mark.slow
@pytest.mark.parametrize("alike", [True, False])
def test_blocks_dropped_from_a_model_of_unlike_blocks(tmp_path, alike):
    """Where their places depend on which blocks are kept, there is a file for each."""
    folder = make_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    if not alike:
        tensors["model.layers.1.input_layernorm.weight"] = torch.ones(32).bfloat16()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    prunus.drop(folder, tmp_path / "out", prunus.DropRecipe(blocks="0,"))
    assert (tmp_path / "out" / "model.safetensors").exists() == alike
    made = Checkpoint(tmp_path / "out")
    assert made.parameters == sum(t.numel() for name, t in tensors.items() if ".layers.0." not in name)
    for name in sorted(made.tensors):
        old = name.replace(".layers.1.", ".layers.2.").replace(".layers.0.", ".layers.1.")
        assert torch.equal(made.read(name), tensors[old])


def test_manifest_keeps_profile_and_earlier_steps(tmp_path):
    made_of = {"name": "m", "checksum": "0"}
    earlier = {"action": "drop", "recipe": {}, "source": made_of, "warnings": []}
    folder = make_model(tmp_path / "m")
    assert Checkpoint(folder).manifest == Manifest()
    step = StepRecord.of({"action": "prune"})
    assert "profile" not in next_manifest(folder, step).data
    first = {"prunus": "0.0.1", "format": 1, "profile": "tiny", "history": [earlier]}
    (folder / "prunus.json").write_text(json.dumps(first))
    manifest = next_manifest(folder, step)
    assert manifest == Manifest.of(manifest.data) and manifest.profile == "tiny"
    assert [done.action for done in manifest.history] == ["drop", "prune"]
    (folder / "prunus.json").write_text(json.dumps(first | {"format": 2}))
    with pytest.raises(PrunusError, match=r"has format 2; .*reads format 1: make the model again"):
        assert Checkpoint(folder).manifest


def test_resolve_finds_tiny_folders_and_hub_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_model(tmp_path / "org" / "name")
    assert resolve("tiny") == tiny_folder()
    assert resolve("tiny-moe") == tiny_folder().with_name("tiny-moe")
    assert resolve("org/name").resolve() == folder
    shutil.move(folder, tmp_path / "cache")
    asked = []

    def fake_download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    assert resolve("org/name") == tmp_path / "cache"
    assert asked[0][0] == "org/name" and "prunus_profile.toml" in asked[0][1]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked[0][1])


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("org/name", True),
        ("Qwen/Qwen3-0.6B", True),
        ("name", False),
        ("./name", False),
        ("a/b/c", False),
        ("/a", False),
    ],
)
def test_what_reads_as_a_hub_id(text, hub):
    assert resolve_module.is_hub_id(text) == hub


def test_a_model_is_looked_through_once_wherever_its_folder_lies(tmp_path):
    """The same configuration in three folders; another one is another model."""
    first, second = (Checkpoint(make_model(tmp_path / name, "qwen3")) for name in ("a", 'b "ü'))
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert first.architecture is second.architecture is Checkpoint(tmp_path / "c").architecture
    other = Checkpoint(make_model(tmp_path / "d", "qwen3", blocks=2))
    assert other.architecture is not first.architecture and (first.blocks, other.blocks) == (3, 2)
