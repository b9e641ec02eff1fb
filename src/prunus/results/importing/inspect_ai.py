"""Logs of inspect_ai: .eval (a zip whose members are compressed with Zstandard) and .json.

A metric is a scorer, or `SCORER/KEY` where its score is a dictionary. Checked against inspect_ai 0.3.285, whose logs
have format 2.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.errors import PrunusError, pip
from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogRecord, need, part, text_of

TOOL, READS, FILES = "inspect_ai", 2, ".eval or .json"
ZSTANDARD = 93  # the number of the compression in a zip
HEADER = "header.json"
WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}  # inspect_ai's own
MOST_MEMBERS = 1_000_000


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
            header = _member(archive, HEADER, path)
            _check(header, path)
            names = sorted({name for name in archive.namelist() if name.startswith("samples/")})
            return _log(header, (_member(archive, name, path) for name in names), path)
    header = files.json_file(path)
    _check(header, path)
    samples = header.get("samples")
    if not isinstance(samples, list):
        raise PrunusError(f"'{path}' has no samples: it was written without log_samples")
    return _log(header, (files.as_object(sample, f"a sample of '{path}'") for sample in samples), path)


def _check(header: Data, path: Path) -> None:
    if (version := header.get("version")) != READS:
        raise PrunusError(f"'{path}' has log format {version}; this prunus reads format {READS} of inspect_ai")
    if (status := header.get("status")) != "success":
        raise PrunusError(f"'{path}' is of a run that did not finish (status {status}): `inspect eval-retry` it first")
    if part(header, "eval").get("shards"):
        raise PrunusError(f"'{path}' names parts in other files (shards): import those")


def _log(header: Data, samples: Iterator[Data], path: Path) -> ImportedLog:
    evaluation = part(header, "eval")
    task = text_of(evaluation.get("task_display_name")) or text_of(evaluation.get("task"))
    records = [_record(task, sample, path) for sample in samples]
    version = part(evaluation, "packages").get("inspect_ai")
    return ImportedLog(
        TOOL,
        f"format {READS}" if version is None else text_of(version),
        text_of(evaluation.get("model")),
        records,
        {
            "generation": files.sampling(part(header, "plan", "config"), part(evaluation, "model_generate_config")),
            "solver": [text_of(step.get("solver")) for step in part(header, "plan").get("steps", [])],
            "task_args": part(evaluation, "task_args"),
        },
    )


def _record(task: str, sample: Data, path: Path) -> LogRecord:
    place = str(need(sample, "id", (int, str), f"a sample of '{path}'"))
    where = f"sample {place} of '{path}'"
    attachments = part(sample, "attachments")
    output, offered = part(sample, "output"), sample.get("choices")
    choice, outcome = files.outcome(output)
    thinking, text = files.message_texts(part(choice, "message").get("content"))
    return LogRecord(
        task=task,
        question=_resolved(files.question_of(sample.get("input")), attachments),
        place=place,
        draw=need(sample, "epoch", int, where) - 1,
        grades=dict(_grades(part(sample, "scores"))),
        target=text_of(sample.get("target")),
        text=_resolved(text or text_of(output.get("completion")), attachments),
        thinking=_resolved(thinking, attachments),
        choices=tuple(map(text_of, offered)) if isinstance(offered, list) else (),
        **outcome,
    )


def _grades(scores: Data) -> Iterator[tuple[str, LogGrade]]:
    for scorer, score in scores.items():
        if not isinstance(score, dict):
            continue
        answer, value = files.answer_of(score.get("answer")), score.get("value")
        named = (
            {f"{scorer}/{key}": grade for key, grade in value.items()} if isinstance(value, dict) else {scorer: value}
        )
        for name, grade in named.items():
            yield name, LogGrade(_number(grade), answer)


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
    """A long text that the log keeps apart."""
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
