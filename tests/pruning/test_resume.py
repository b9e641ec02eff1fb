"""Interrupted runs go on where they stopped and end with the same bytes as unbroken ones."""

import errno
import json
import os
import shutil
import signal
import struct
from collections import namedtuple

import pytest
import warm_processes
from tiny_models import make_model, random_rows

import prunus
from prunus import disk
from prunus.checkpoint import safetensors_file
from prunus.checkpoint import writer as writer_module
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.pruning.methods import METHODS
from prunus.recipes import PruneRecipe

BLOCKS = 5
# Dies by SIGKILL after some bytes of weights of a block, right after a block is finished, or then and while a thread
# copies what lies outside the blocks.
KILLED = """
import os, signal, sys, threading, time
import prunus
from prunus.checkpoint import safetensors_file, writer

model, out, rows, when, blocks, propagation, offload, method = sys.argv[1:]
finished, reached = 0, threading.Event()
write_block, data = writer.Partial.write_block, safetensors_file._data

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(self, *arguments):
    global finished
    write_block(self, *arguments)
    finished += 1
    if when == "between blocks" and finished == int(blocks):
        die()
    if when == "while copying" and finished == int(blocks):
        reached.set()
        time.sleep(100)

def cut(tensor):
    for piece in data(tensor):
        yield piece[: len(piece) // 2]
        if when == "while copying" and threading.current_thread() is not threading.main_thread():
            reached.wait()
            die()
        if when == "while writing" and finished == int(blocks):
            die()
        yield piece[len(piece) // 2 :]

writer.JOURNAL_SECONDS = 0
writer.Partial.write_block = counted
safetensors_file._data = cut
recipe = prunus.PruneRecipe(calibration=rows, sequences=6, sparsity=0.4, propagation=propagation, method=method)
prunus.prune(model, out, recipe, offload=bool(offload))
"""


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "m", "qwen3", blocks=BLOCKS)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(6, 40)))
    return path


def recipe(rows, **changes):
    return PruneRecipe(**{"calibration": str(rows), "sequences": 6, "sparsity": 0.4} | changes)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.thorough("between blocks-2-pruned--wanda", "while writing-3-true_sequential-yes-wanda")
@pytest.mark.slow
@warm_processes.in_one_worker
@pytest.mark.parametrize(
    ("when", "blocks", "propagation", "offload", "method"),
    [
        ("between blocks", 1, "pruned", "", "wanda"),
        ("between blocks", BLOCKS, "pruned", "", "wanda"),
        ("while writing", 3, "pruned", "yes", "wanda"),
        ("while writing", 2, "dense", "", "wanda"),
        ("between blocks", 2, "true_sequential", "", "wanda"),
        ("while writing", 3, "true_sequential", "yes", "wanda"),
        ("while writing", 2, "pruned", "", "sparsegpt"),
        ("between blocks", 3, "true_sequential", "yes", "sparsegpt"),
        ("between blocks", 2, "pruned", "", "wanda"),
        ("while writing", 0, "pruned", "", "wanda"),
        ("while copying", 2, "pruned", "", "wanda"),
    ],
)
def test_killed_run_resumes_to_the_same_bytes(tmp_path, model, rows, when, blocks, propagation, offload, method):
    asked = recipe(rows, propagation=propagation, method=method)
    prunus.prune(model, tmp_path / "unbroken" / "out", asked)
    out = tmp_path / "broken" / "out"
    arguments = [model, out, rows, when, blocks, propagation, offload, method]
    assert warm_processes.run(KILLED, *arguments) == (-signal.SIGKILL, "")
    assert not out.exists()
    journal = json.loads((out.with_name("out.partial") / "journal.json").read_text())
    assert sorted(map(int, journal["blocks"])) == list(range(blocks))
    rows.unlink()  # the tokens of the first run are replayed, whatever became of the file
    if not journal["notes"]:
        rows.write_bytes((tmp_path / "unbroken" / "out" / "calibration.jsonl").read_bytes())
    prunus.prune(model, out, asked, offload=bool(offload))
    assert contents(out) == contents(tmp_path / "unbroken" / "out")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def stop_after(monkeypatch, blocks, error):
    """Let write_block raise once this number of blocks is finished; returns a list that counts calls of the method."""
    write_block = Partial.write_block

    def stopping(self, *arguments):
        if len(self.records) == blocks:
            raise error
        write_block(self, *arguments)

    monkeypatch.setattr(Partial, "write_block", stopping)


def count_calls(monkeypatch):
    """A list that grows by one whenever a Linear is pruned."""
    calls = []
    wanda = METHODS["wanda"]
    counted = wanda._replace(prune=lambda *arguments: calls.append(1) or wanda.prune(*arguments))
    monkeypatch.setattr("prunus.pruning.methods.METHODS", {"wanda": counted})
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("whole_bytes", [writer_module.SINGLE_FILE_BYTES, 0])
def test_interruption_keeps_finished_blocks_and_they_are_not_pruned_again(
    tmp_path, model, rows, monkeypatch, whole_bytes
):
    monkeypatch.setattr(writer_module, "SINGLE_FILE_BYTES", whole_bytes)
    prunus.prune(model, tmp_path / "whole", recipe(rows))
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(model, tmp_path / "out", recipe(rows))
    assert not (tmp_path / "out").exists()
    calls = count_calls(monkeypatch)
    prunus.prune(model, tmp_path / "out", recipe(rows))
    assert len(calls) == 7 * (BLOCKS - 3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interruption_before_the_first_block_leaves_nothing(tmp_path, model, rows, monkeypatch):
    stop_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(model, tmp_path / "deep" / "down" / "out", recipe(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.jsonl"]


def interrupt(monkeypatch, model, out, asked):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(model, out, asked)


@pytest.mark.slow
def test_work_of_another_recipe_or_model_is_refused_or_deleted(tmp_path, model, rows, monkeypatch):
    interrupt(monkeypatch, model, tmp_path / "out", recipe(rows))
    before = contents(tmp_path / "out.partial")
    other_model = make_model(tmp_path / "m2", "qwen3", blocks=BLOCKS, seed=1)
    for source, asked in ((model, recipe(rows, sparsity=0.6)), (other_model, recipe(rows))):
        with pytest.raises(PrunusError, match=r"out\.partial holds unfinished work .* delete it or add --overwrite"):
            prunus.prune(source, tmp_path / "out", asked)
        assert contents(tmp_path / "out.partial") == before
    prunus.prune(other_model, tmp_path / "out", recipe(rows), overwrite=True)
    prunus.prune(other_model, tmp_path / "fresh", recipe(rows))
    assert Checkpoint(tmp_path / "out").checksum() == Checkpoint(tmp_path / "fresh").checksum()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.slow
def test_work_on_calibration_that_changed_meanwhile_is_not_continued(tmp_path, model, rows, monkeypatch):
    """The same command went on with what the file had held, and did not say so."""
    interrupt(monkeypatch, model, tmp_path / "out", recipe(rows))
    before, text = contents(tmp_path / "out.partial"), rows.read_text()
    rows.write_text("".join(text.splitlines(keepends=True)[::-1]))
    with pytest.raises(PrunusError, match=r"rows\.jsonl was changed after .*out\.partial was begun with it"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
    assert contents(tmp_path / "out.partial") == before
    rows.unlink()
    calls = count_calls(monkeypatch)
    prunus.prune(model, tmp_path / "out", recipe(rows))
    assert len(calls) == 7 * (BLOCKS - 2), "what was kept suffices"


@pytest.mark.slow
def test_a_step_on_calibration_that_changed_meanwhile_is_not_taken_as_made(tmp_path, model, rows, monkeypatch):
    steps = [recipe(rows), prunus.RecoverRecipe(calibration=str(rows), sequences=6, epochs=1, step_tokens=64)]
    with monkeypatch.context() as patch:
        patch.setattr("prunus.pruning.recover.recover.recover", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prunus.apply_steps(model, tmp_path / "out", steps)
    before = contents(tmp_path / "out.after-1")
    text = rows.read_text()
    rows.write_text("".join(text.splitlines(keepends=True)[::-1]))
    with pytest.raises(PrunusError, match=r"rows\.jsonl was changed after .*out\.after-1 was begun with it"):
        prunus.apply_steps(model, tmp_path / "out", steps)
    assert contents(tmp_path / "out.after-1") == before
    rows.write_text(text)
    prunus.apply_steps(model, tmp_path / "out", steps)
    assert not (tmp_path / "out.after-1").exists()


@pytest.mark.slow
def test_work_on_a_model_that_changed_meanwhile_begins_anew(tmp_path, model, rows, monkeypatch):
    interrupt(monkeypatch, model, tmp_path / "out", recipe(rows))
    place = Checkpoint(model).tensors["model.layers.0.mlp.down_proj.weight"]
    with place.file.open("r+b") as stream:  # its end, which no fingerprint sees
        stream.seek(place.end - 4)
        stream.write(bytes(4))
    with pytest.raises(PrunusError, match="has changed since the unfinished work was done; run again"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
    assert not (tmp_path / "out.partial").exists()
    prunus.prune(model, tmp_path / "out", recipe(rows))


def test_a_flush_that_fails_is_told_like_a_full_disk(tmp_path, model, rows, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer_module, "sync_file", full)
    with pytest.raises(PrunusError, match=r"disk of .*out\.partial is full"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.norm.weight"])
def test_nan_found_on_the_way_leaves_nothing(tmp_path, model, rows, name, method):
    place = Checkpoint(model).tensors[name]
    with place.file.open("r+b") as stream:
        stream.seek(place.end - 4)
        stream.write(struct.pack("<f", float("nan")))
    with pytest.raises(PrunusError, match=f"'{name}' holds NaN or infinity"):
        prunus.prune(model, tmp_path / "out", recipe(rows, method=method))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.jsonl"]


def test_a_folder_of_somebody_else_is_never_deleted(tmp_path, model, rows):
    (tmp_path / "out.partial" / "photos").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    for out in ("out", "precious"):
        with pytest.raises(PrunusError):
            prunus.prune(model, tmp_path / out, recipe(rows), overwrite=True)
    assert (tmp_path / "out.partial" / "photos").is_dir()
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_two_processes_do_not_work_on_one_folder(tmp_path, model, rows):
    source = Checkpoint(model)
    with Partial(source, tmp_path / "out", "work", BLOCKS, 0, False) as first:
        with (
            pytest.raises(PrunusError, match="another prunus process"),
            Partial(source, tmp_path / "out", "work", BLOCKS, 0, True),
        ):
            pass
        assert first.folder.exists()


@pytest.mark.slow
def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path, model, rows, monkeypatch):
    finish = Partial.finish

    def late(self, *arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
        finish(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "finish", late)
        with pytest.raises(OSError, match="not empty"):
            prunus.prune(model, tmp_path / "out", recipe(rows))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    shutil.rmtree(tmp_path / "out")
    prunus.prune(model, tmp_path / "out", recipe(rows))
    assert Checkpoint(tmp_path / "out").blocks == BLOCKS


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_anything_is_written(tmp_path, model, rows, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    for attempt in (
        lambda: prunus.plan(model, recipe(rows), tmp_path / "deep" / "out"),
        lambda: prunus.prune(model, tmp_path / "deep" / "out", recipe(rows)),
    ):
        with pytest.raises(PrunusError, match=r"has 1\.0 kB free, but .* kB are needed; free some space"):
            attempt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.jsonl"]


class FullDisk:
    """A stream to a disk that takes `left` more bytes."""

    left = 0

    def __init__(self, stream):
        self.stream = stream

    def write(self, data):
        FullDisk.left -= len(data)
        if FullDisk.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.slow
def test_full_disk_keeps_finished_blocks_and_half_written_files_go(tmp_path, model, rows, monkeypatch):
    monkeypatch.setattr(writer_module, "SINGLE_FILE_BYTES", 0)
    prunus.prune(model, tmp_path / "whole", recipe(rows))
    atomic_file = disk.atomic_file

    class on_full_disk:  # stands for the function atomic_file
        def __init__(self, path, sync):
            self.context = atomic_file(path, sync)

        def __enter__(self):
            return FullDisk(self.context.__enter__())

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    block_bytes = sum(stored.nbytes for stored in Checkpoint(model).block_tensors(0).values())
    for room, left_behind in ((2.5 * block_bytes, True), (0.5 * block_bytes, False)):
        with monkeypatch.context() as patch:
            FullDisk.left = int(room) + 8000  # journal and calibration
            for module in (safetensors_file, disk):  # weights, and texts
                patch.setattr(module, "atomic_file", on_full_disk)
            with pytest.raises(PrunusError, match=r"disk of .*out\.partial is full: .* kB are needed in all") as caught:
                prunus.prune(model, tmp_path / "out", recipe(rows))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert (tmp_path / "out.partial").exists() == left_behind
        if left_behind:
            names = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
            assert [name for name in names if name.endswith("safetensors")] == names[-2:]
            assert names[-1] == "model-00002-of-00006.safetensors"
            assert not any(name.endswith(".writing") for name in names)
            prunus.prune(model, tmp_path / "out", recipe(rows))
            assert contents(tmp_path / "out") == contents(tmp_path / "whole")
            shutil.rmtree(tmp_path / "out")


def test_room_for_a_small_model_is_taken_before_its_first_block(tmp_path, model, rows, monkeypatch):
    def refuse(_descriptor, _begin, size):
        assert size > Checkpoint(model).nbytes
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(PrunusError, match=r"disk of .*out\.partial is full"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("whole_bytes", [writer_module.SINGLE_FILE_BYTES, 0])
@pytest.mark.parametrize("flushed", [False, True])
def test_after_a_power_cut_only_what_was_flushed_counts(tmp_path, model, rows, monkeypatch, flushed, whole_bytes):
    monkeypatch.setattr(writer_module, "SINGLE_FILE_BYTES", whole_bytes)
    prunus.prune(model, tmp_path / "whole", recipe(rows))
    monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 0 if flushed else 1000)
    if not flushed:
        monkeypatch.setattr(writer_module, "sync_files", lambda _paths, _blocks: set())
    interrupt(monkeypatch, model, tmp_path / "out", recipe(rows))
    if not flushed:  # the disk may hold anything where the blocks should be
        for path in (tmp_path / "out.partial").glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    monkeypatch.setattr(writer_module, "boot", lambda: "another")
    calls = count_calls(monkeypatch)
    prunus.prune(model, tmp_path / "out", recipe(rows))
    assert len(calls) == 7 * (BLOCKS - 2 if flushed else BLOCKS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_journal_lost_in_a_power_cut_is_no_riddle(tmp_path, model, rows, monkeypatch):
    interrupt(monkeypatch, model, tmp_path / "out", recipe(rows))
    (tmp_path / "out.partial" / "journal.json").write_text("")
    with pytest.raises(PrunusError, match="delete it or add --overwrite"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
    prunus.prune(model, tmp_path / "out", recipe(rows), overwrite=True)
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, model, rows, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out.partial")

    monkeypatch.setattr(writer_module.Path, "mkdir", refuse)
    with pytest.raises(PrunusError, match=r"out\.partial cannot be written: Permission denied"):
        prunus.prune(model, tmp_path / "out", recipe(rows))
