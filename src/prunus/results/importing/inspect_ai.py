"""Logs of inspect_ai: .eval (a zip whose members are compressed with Zstandard) and .json.

A metric is a scorer, or `SCORER/KEY` where its score is a dictionary. Checked against inspect_ai 0.3.285, whose logs
have format 2.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError, pip
from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogObject, LogRecord, Output, text_of

TOOL, READS, FILES = "inspect_ai", 2, ".eval or .json"
ZSTANDARD = 93  # the number of the compression in a zip
HEADER = "header.json"
WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}  # inspect_ai's own
MOST_MEMBERS = 1_000_000


class Packages(LogObject):
    """Versions of packages."""

    inspect_ai: Any = None


class Evaluation(LogObject):
    """The model and the task."""

    task: Any = None
    task_display_name: Any = None
    task_args: Data = field(default_factory=dict)
    model: Any = None
    model_generate_config: Data = field(default_factory=dict)
    packages: Packages = Packages()
    shards: Any = None


class Solver(LogObject):
    """A step of a plan."""

    solver: Any = None


class Plan(LogObject):
    """Plan of an evaluation: its steps and its generation settings."""

    steps: list[Any] = field(default_factory=list)
    config: Data = field(default_factory=dict)


class Header(LogObject):
    """A log, with samples where these are not in other files."""

    version: Any = None
    status: Any = None
    eval: Evaluation = Evaluation()
    plan: Plan = Plan()
    samples: list[Any] | None = None


class InspectSample(LogObject):
    """An output and its scores."""

    id: int | str
    epoch: int
    input: Any = None
    choices: list[Any] = field(default_factory=list)
    target: Any = None
    scores: Data = field(default_factory=dict)
    output: Output = Output()
    attachments: Data = field(default_factory=dict)


class InspectScore(LogObject):
    """The score by a scorer. value: a number, a word, or several by name."""

    answer: Any = None
    value: Any = None


def detect(path: Path, head: bytes) -> bool:
    """Whether the file is a zip with the extension .eval, or JSON that begins as a log does."""
    if head.startswith(b"PK"):
        return path.suffix == ".eval"
    if path.suffix != ".json":
        return False
    return all(sign in files.beginning(path, 4096) for sign in (b'"version"', b'"status"', b'"eval"'))


def read(path: Path) -> ImportedLog:
    """The log with a record per sample and epoch. Raises PrunusError unless its run was successful."""
    if path.suffix == ".eval":
        with _opened(path) as archive:
            header = Header.of(_member(archive, HEADER, path))
            _check(header, path)
            names = sorted({name for name in archive.namelist() if name.startswith("samples/")})
            return _log(header, (_member(archive, name, path) for name in names), path)
    header = Header.of(files.json_file(path))
    _check(header, path)
    if header.samples is None:
        raise PrunusError(f"'{path}' has no samples: it was written without log_samples")
    return _log(header, (files.as_object(sample, f"a sample of '{path}'") for sample in header.samples), path)


def _check(header: Header, path: Path) -> None:
    if header.version != READS:
        raise PrunusError(f"'{path}' has log format {header.version}; this prunus reads format {READS} of inspect_ai")
    if header.status != "success":
        raise PrunusError(
            f"'{path}' is of a run that did not finish (status {header.status}): `inspect eval-retry` it first"
        )
    if header.eval.shards:
        raise PrunusError(f"'{path}' names parts in other files (shards): import those")


def _log(header: Header, samples: Iterator[Data], path: Path) -> ImportedLog:
    of, version = header.eval, header.eval.packages.inspect_ai
    task = text_of(of.task_display_name) or text_of(of.task)
    return ImportedLog(
        TOOL,
        f"format {READS}" if version is None else text_of(version),
        text_of(of.model),
        [_record(task, InspectSample.of(sample, f"a sample of '{path}'")) for sample in samples],
        {
            "generation": files.sampling(header.plan.config, of.model_generate_config),
            "solver": [text_of(Solver.of(step).solver) for step in header.plan.steps],
            "task_args": of.task_args,
        },
    )


def _record(task: str, sample: InspectSample) -> LogRecord:
    attachments, output = sample.attachments, sample.output
    thinking, text = files.message_texts(output.first.message.content)
    return LogRecord(
        task=task,
        question=_resolved(files.question_of(sample.input), attachments),
        place=str(sample.id),
        draw=sample.epoch - 1,
        grades=dict(_grades(sample.scores)),
        target=text_of(sample.target),
        text=_resolved(text or text_of(output.completion), attachments),
        thinking=_resolved(thinking, attachments),
        choices=tuple(map(text_of, sample.choices)),
        **output.outcome,
    )


def _grades(scores: Data) -> Iterator[tuple[str, LogGrade]]:
    for scorer, given in scores.items():
        if not isinstance(given, dict):
            continue
        score = InspectScore.of(given)
        several = isinstance(score.value, dict)
        named = {f"{scorer}/{key}": grade for key, grade in score.value.items()} if several else {scorer: score.value}
        for name, grade in named.items():
            yield name, LogGrade(_number(grade), files.answer_of(score.answer))


def _number(value: object) -> float | None:
    """A score as inspect_ai's value_to_float has it, but None where that warns and takes 0."""
    if isinstance(value, str):
        word = WORDS.get(value, WORDS.get(value.lower()))
        if word is not None:
            return word
        try:
            return files.score(float(value))
        except ValueError:
            return None
    return files.score(value)


def _resolved(text: str, attachments: Data) -> str:
    """The text, or the attachment that it names: the log keeps long texts apart."""
    attached = attachments.get(text.removeprefix("attachment://")) if text.startswith("attachment://") else None
    return attached if isinstance(attached, str) else text


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if len(infos) > MOST_MEMBERS:
                raise PrunusError(f"'{path}' has {len(infos):,} members: not a log")
            files.check_size(path, sum(info.file_size for info in infos))
            yield archive
    except zipfile.BadZipFile as error:
        raise PrunusError(f"'{path}' is damaged or half written ({error}): `inspect log recover` may help") from error


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Data:
    """The JSON object of a member. Never more bytes are unpacked than the table of contents says."""
    where = f"{name} of '{path}'"
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise PrunusError(f"'{path}' has no {name}: its run has not finished; `inspect eval-retry` it first") from None
    try:
        data = _zstandard(archive, info, where) if info.compress_type == ZSTANDARD else archive.read(info)
    except (NotImplementedError, RuntimeError, OSError, EOFError, zlib.error) as error:
        raise PrunusError(f"{where} cannot be unpacked ({error})") from error
    return files.as_object(files.parsed(data, where), where)


def _zstandard(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    """The bytes of a member compressed with Zstandard, which Python's zipfile cannot unpack before 3.14."""
    try:
        import pyarrow
    except ImportError as error:
        raise PrunusError(f"'.eval' files need pyarrow, to unpack {where}: {pip('frames')}") from error
    packed = zipfile.ZipInfo(info.filename)  # the same place in the file, read as if it were not compressed
    for name in ("header_offset", "flag_bits", "orig_filename", "compress_size"):
        setattr(packed, name, getattr(info, name))
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
    buffer = io.BytesIO()
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(archive.read(packed)), "zstd") as unpacked:
        while buffer.tell() <= info.file_size and (chunk := unpacked.read(1 << 20)):
            buffer.write(chunk)
    data = buffer.getvalue()
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise PrunusError(f"{where} is damaged: its bytes are not those that were written")
    return data
