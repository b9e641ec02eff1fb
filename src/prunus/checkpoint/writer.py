"""Write a checkpoint to OUT.partial, which is renamed to OUT when it is complete.

The blocks of a small model are written to their places in one file, those of a large model to a file each. The
journal says which work this is (recipe and source) and which blocks are finished, so that an interrupted run can
resume. After the end of the process all finished blocks are kept; after a power cut, those that a thread had flushed to
disk.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import INDEX, SINGLE_FILE
from prunus.checkpoint.resolve import CALIBRATION, TEMPLATES
from prunus.checkpoint.safetensors_file import OpenFile, Stored, entry_of, read_header, write_file
from prunus.disk import (
    DiskFull,
    check_space,
    disk_errors,
    locked,
    partial_folder,
    remove_stale,
    replace_folder,
    sync_file,
    write_text,
)
from prunus.errors import PrunusError
from prunus.manifest import MANIFEST, StepRecord, next_manifest
from prunus.plain_data import StoredData, parse_json
from prunus.progress import Steps
from prunus.recipes.drawing import PROFILE_FILE

JOURNAL, LOCK, HIDDEN = "journal.json", "lock", "hidden.bin"
SCORES = "evidence.json"
# Files of a model that are copied with the weights; other files in its folder are not.
COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".md", ".tiktoken"}
COPIED_NAMES = {"LICENSE", "NOTICE", Path(PROFILE_FILE).stem}
CERTIFICATE = "certificate.json"  # of `find`; it holds for one model, and for none that is made from it
NOT_COPIED = {"config.json", INDEX, MANIFEST, CALIBRATION, SCORES, JOURNAL, CERTIFICATE}
# Weights up to this size are written to one file, as is usual for such models; larger ones to a file per block.
SINGLE_FILE_BYTES = 2_000_000_000
FLUSH_SECONDS = 10.0  # the most work that a power cut may lose
JOURNAL_SECONDS = 0.5  # the most work that the sudden end of the process may lose


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise PrunusError if target overlaps source, or exists (with overwrite: exists and is not a checkpoint)."""
    model = source.resolve()
    for folder in (target.resolve(), partial_folder(target).resolve()):
        if folder == model or model in folder.parents or folder in model.parents:
            raise PrunusError(f"{target} is or overlaps the model's own folder {source}; choose another output")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise PrunusError(f"{target} exists; choose another output or add --overwrite")
    if not (target / "config.json").is_file():
        raise PrunusError(f"{target} exists and is not a checkpoint, so it will not be replaced; choose another output")


@dataclass
class Partial:
    """A result that is being written: `with Partial(source, target, work, shards, needed, overwrite) as partial`.

    work: content_hash of what is made, and from what. Unfinished work with the same hash is continued; other work
    raises PrunusError (with overwrite: it is deleted). shards: number of blocks of the result (see resize). needed:
    bytes of disk for all of the result. left_out: tensors outside blocks that the result lacks. entries: returns, from
    the complete notes, the names, dtypes and shapes of the result's tensors; None if they are those of the source.
    On an interruption the folder and its finished blocks are kept; on an error in the input it is deleted.
    """

    source: Checkpoint
    target: Path
    work: str
    shards: int
    needed: int
    overwrite: bool
    left_out: Collection[str] = ()
    entries: Callable[[Mapping[str, Any]], Mapping[str, Stored]] | None = None

    def __post_init__(self) -> None:
        check_target(self.source.folder, self.target, self.overwrite)
        self.folder = partial_folder(self.target)
        self.target = self.target.resolve()
        self.records: dict[int, Mapping[str, Any]] = {}
        self.notes: dict[str, Any] = {}
        self.flushed: set[int] = set()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self.flushing: Future[set[int]] | None = None
        self.flushed_at = self.noted_at = time.monotonic()
        self.whole: OpenFile | None = None
        self.outside: Future[None] | None = None
        self.finished = False

    def __enter__(self) -> Self:
        check_space(self.folder, self.needed - sum(path.stat().st_size for path in self._own_files()))
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.created_parents = [folder for folder in missing if folder != self.folder]
        self.lock = ExitStack()
        try:
            with disk_errors(self.folder, self.needed):
                self.folder.mkdir(parents=True, exist_ok=True)
                why = f"is working on {self.folder}; wait for it"
                self.lock.enter_context(locked(self.folder / LOCK, why))
            self._continue_or_start()
        except BaseException:
            self.lock.close()
            for folder in missing:
                with suppress(OSError):  # it was not created, or holds work of another process
                    folder.rmdir()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if self.finished:
            self.lock.close()
            return
        (self.folder / HIDDEN).unlink(missing_ok=True)
        wrong_input = isinstance(error, PrunusError) and not isinstance(error, DiskFull)
        keep = bool(self.records) and not wrong_input
        if keep:
            with suppress(OSError):
                self._await_flush()
            with suppress(OSError):  # if the disk is full, blocks since the last journal are lost
                self._write_journal()
        self.lock.close()
        if not keep:
            shutil.rmtree(self.folder)
            for folder in self.created_parents:
                with suppress(OSError):  # another program may have put something there
                    folder.rmdir()

    def has(self, index: int) -> bool:
        """Whether a block is finished."""
        return index in self.records

    def shard(self, index: int) -> Path:
        """The file of a block of the result; index == shards is the file of the tensors outside blocks."""
        return self.folder / f"model-{index + 1:05d}-of-{self.shards + 1:05d}.safetensors"

    def read_block(self, index: int) -> dict[str, Stored]:
        """The locations of a finished block's tensors."""
        if self.whole is not None:
            starts = self.source.block_starts(index)
            return {name: place for name, place in self.whole.places.items() if name.startswith(starts)}
        return read_header(self.shard(index))

    def write_block(self, index: int, tensors: Mapping[str, Tensor | Stored], record: Mapping[str, Any]) -> None:
        """Write a block. record: JSON that is kept in the journal and, after a resume, in records."""
        with disk_errors(self.folder, self.needed):
            if not self.records:
                self._open_whole()
            self._write_part(index, tensors)
            self.records[index] = record
            if flush := time.monotonic() - self.flushed_at >= FLUSH_SECONDS or not boot():
                self._await_flush()
            self._start_flush()
            if flush or time.monotonic() - self.noted_at >= JOURNAL_SECONDS:
                self._write_journal(flush)

    def copy_blocks(self, made: Checkpoint, title: str) -> None:
        """Write the blocks that are not finished yet, from the checkpoint `made`. title: of the progress bar."""
        with Steps(title, total=made.blocks, unit="blocks", done=len(self.records)) as steps:
            for index in range(made.blocks):
                if not self.has(index):
                    self.write_block(index, made.block_tensors(index), {})
                    steps.advance()

    def note(self, key: str, value: object, files: Mapping[str, str]) -> None:
        """Store JSON in notes, which a resumed run finds again, and text files that belong to the result."""
        with disk_errors(self.folder, self.needed):
            for name, text in files.items():
                write_text(self.folder / name, text)
            self.notes[key] = value
            self._write_journal(sync=bool(files))

    def resize(self, shards: int) -> None:
        """Change how many blocks the result has, before the first is written."""
        assert not self.records
        self.shards = shards

    def finish(self, config: Mapping[str, Any] | None, step: StepRecord, texts: Mapping[str, str]) -> None:
        """Add the weights outside blocks, then publish."""
        with disk_errors(self.folder, self.needed):
            if self.outside is None:
                self._write_part(self.shards, self._outer_tensors())
            else:
                self.outside.result()
            self._await_flush()
            if self.whole is None:
                self._write_index()
        self.publish(config, step, texts)

    def publish(self, config: Mapping[str, Any] | None, step: StepRecord, texts: Mapping[str, str]) -> None:
        """Add everything but the weights, then rename the folder; an existing target is replaced only now.

        config: content of the new config.json; None: the source's file is copied. step: the manifest's new entry.
        texts: files, by name, that replace those of the source.
        """
        (self.folder / HIDDEN).unlink(missing_ok=True)
        with disk_errors(self.folder, self.needed):
            copy_companions(self.source.folder, self.folder)
            for name, text in texts.items():
                write_text(self.folder / name, text, sync=False)
            if config is None and self.source.quantised is not None:
                config = self.source.config_json
            if config is None:
                shutil.copyfile(self.source.folder / "config.json", self.folder / "config.json")
            else:
                write_text(self.folder / "config.json", json.dumps(config, indent=2) + "\n", sync=False)
            manifest = next_manifest(self.source.folder, step)
            text = json.dumps(manifest.data, indent=1, ensure_ascii=False) + "\n"
            write_text(self.folder / MANIFEST, text, sync=False)
            sync_tree(self.folder)
        self.finished = True
        replace_folder(self.folder, self.target, self.overwrite)
        # Only now, so that a run killed before the renaming can still be resumed.
        for name in (JOURNAL, LOCK):
            (self.target / name).unlink(missing_ok=True)

    def _continue_or_start(self) -> None:
        """Continue the unfinished work in the folder, or start; raise PrunusError if it belongs to other work."""
        remove_stale(self.folder)  # what was left before the first journal would be taken for other work
        journal = self.folder / JOURNAL
        content = read_journal(journal)
        is_same_work = content.work == self.work
        if self._own_files() and not is_same_work and not (self.overwrite and journal.exists()):
            raise PrunusError(
                f"{self.folder} holds unfinished work of another recipe or model; delete it or add --overwrite"
            )
        if is_same_work:
            self.records, self.notes = dict(content.blocks), dict(content.notes)
            self.shards, self.flushed = content.shards, set(content.flushed)
            if not boot() or content.boot != boot():  # after a power cut, only flushed blocks are on disk
                self.records = {index: record for index, record in self.records.items() if index in self.flushed}
        for path in self._own_files():
            if path.is_dir():
                shutil.rmtree(path)
            elif not is_same_work or path.suffix == ".writing":
                path.unlink()
        with disk_errors(self.folder, self.needed):
            if self.records:
                self._open_whole()
            self._write_journal()

    def _own_files(self) -> list[Path]:
        """The files in the folder except the lock."""
        return [path for path in self.folder.glob("*") if path.name != LOCK]

    def _write_journal(self, sync: bool = False) -> None:
        journal = {
            "work": self.work,
            "shards": self.shards,
            "blocks": self.records,
            "notes": self.notes,
            "flushed": sorted(self.flushed),
            "boot": boot(),
        }
        write_text(self.folder / JOURNAL, json.dumps(journal), sync)
        self.noted_at = time.monotonic()
        if sync:
            self.flushed_at = self.noted_at

    def _open_whole(self) -> None:
        """Create or reopen the single file of a small model; large models, or those of unlike blocks, have several.

        While blocks are written, a thread checks and copies the tensors outside blocks.
        """
        entries = self._entries()
        if entries is None or sum(entry.nbytes for entry in entries.values()) > SINGLE_FILE_BYTES:
            return
        self.whole = OpenFile(self.folder / SINGLE_FILE, entries)
        if self.whole.fresh:
            self.records = {}
        self.outside = self.thread.submit(self._copy_outside, self.whole)

    def _copy_outside(self, whole: OpenFile) -> None:
        self.source.digest(None)
        whole.write(self._outer_tensors())

    def _outer_tensors(self) -> dict[str, Stored]:
        """The result's tensors outside blocks."""
        outer = self.source.outer_tensors()
        return {name: stored for name, stored in outer.items() if name not in self.left_out}

    def _entries(self) -> Mapping[str, Stored] | None:
        """Names, dtypes and shapes of the result's tensors; None if they depend on which blocks are kept."""
        if self.entries is not None:
            return self.entries(self.notes)
        if self.shards == self.source.blocks:
            return self.source.tensors
        entries = self._outer_tensors()
        kinds = [
            {self.source.renumbered(name, index, 0): entry_of(tensor) for name, tensor in block.items()}
            for index, block in enumerate(map(self.source.block_tensors, range(self.source.blocks)))
        ]
        for index in range(self.shards):
            entries |= {self.source.renumbered(name, 0, index): entry for name, entry in kinds[0].items()}
        return entries if all(kind == kinds[0] for kind in kinds) else None

    def _write_part(self, index: int, tensors: Mapping[str, Tensor | Stored]) -> None:
        """Write one block, or the tensors outside blocks."""
        if self.whole is not None:
            self.whole.write(tensors)
        else:
            write_file(self.shard(index), tensors, sync=False)

    def _start_flush(self) -> None:
        """Let the thread flush finished blocks while the next is made, unless it is still flushing others."""
        if self.flushing is not None and not self.flushing.done():
            return
        self._await_flush()
        blocks = set(self.records)
        paths = [self.whole.path] if self.whole else [self.shard(index) for index in blocks - self.flushed]
        self.flushing = self.thread.submit(sync_files, paths, blocks)

    def _await_flush(self) -> None:
        """Wait for the flushing thread; its errors are raised here."""
        if self.flushing is not None:
            self.flushed |= self.flushing.result()
            self.flushing = None

    def _write_index(self) -> None:
        """Write the index of a model that has several files."""
        tensors: dict[str, Stored] = {}
        for index in range(self.shards + 1):
            tensors |= read_header(self.shard(index))
        weight_map = {name: stored.file.name for name, stored in sorted(tensors.items())}
        total = sum(stored.nbytes for stored in tensors.values())
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(self.folder / INDEX, json.dumps(index_json, indent=2) + "\n", sync=False)


@cache
def boot() -> str:
    """The id of the system's current boot, "" if it is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class WorkJournal(StoredData):
    """The journal of unfinished work.

    work: hash of what identifies it. shards: number of blocks of the result. blocks: record of each finished block.
    notes: as of Partial.note. flushed: blocks that a power cut leaves on disk. boot: as of `boot`.
    """

    work: str | None = None
    shards: int = 0
    blocks: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    flushed: tuple[int, ...] = ()
    boot: str | None = None


def read_journal(path: Path) -> WorkJournal:
    """The journal of unfinished work; an empty one if it is missing or was damaged by a power cut."""
    try:
        return WorkJournal.of(parse_json(path.read_text("utf-8")))
    except (OSError, ValueError):
        return WorkJournal()


def sync_files(paths: Iterable[Path], blocks: set[int]) -> set[int]:
    """Flush files to disk and return the indices of the blocks in them."""
    for path in paths:
        sync_file(path)
    return blocks


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in folder.iterdir():
        if path.is_dir():
            sync_tree(path)
        elif path.name not in (JOURNAL, LOCK):
            sync_file(path)
    sync_file(folder)


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, generation configuration, chat templates and licence."""
    for path in sorted(source.iterdir()):
        known = path.suffix in COPIED_SUFFIXES or path.stem in COPIED_NAMES
        if path.is_file() and known and path.name not in NOT_COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
    templates = source / TEMPLATES
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name, dirs_exist_ok=True)
