"""Details of lighteval: `details/MODEL/DATE/details_TASK_DATE.parquet`. Needs pyarrow (the extra `frames`).

The file has the token ids of the outputs but no reason for their end. It names no version; its columns do not change
without one. Checked against lighteval 0.13.0.
"""

import re
from dataclasses import field
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError, pip
from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogObject, LogRecord, score, text_of

TOOL, FILES = "lighteval", "details_*.parquet"
COLUMNS = {"doc", "metric", "model_response"}
BATCH = 256  # rows that are unpacked at a time


class Specific(LogObject):
    """Additions of a task to a document."""

    extracted_predictions: list[Any] = field(default_factory=list)


class LightevalDocument(LogObject):
    """A problem. choices: for a generative task the right answers."""

    task_name: Any = None
    id: Any = None
    query: Any = None
    original_query: Any = None
    choices: list[Any] = field(default_factory=list)
    gold_index: Any = None
    sampling_methods: Any = None
    specific: Specific = Specific()


class Response(LogObject):
    """The outputs for a problem."""

    text: list[Any] = field(default_factory=list)
    output_tokens: list[Any] = field(default_factory=list)
    reasonings: list[Any] = field(default_factory=list)


class DetailsRow(LogObject):
    """A row of the details."""

    doc: LightevalDocument = LightevalDocument()
    model_response: Response = Response()
    metric: Data = field(default_factory=dict)


class ModelSettings(LogObject):
    """Settings of the model."""

    generation_parameters: Data = field(default_factory=dict)
    system_prompt: Any = None


class General(LogObject):
    """The part of the results that describes the run."""

    model_name: Any = None
    model_config: ModelSettings = ModelSettings()


class LightevalResults(LogObject):
    """The results of a run."""

    config_general: General = General()


def detect(path: Path, head: bytes) -> bool:
    """Whether the file is Parquet."""
    return head.startswith(b"PAR1")


def read(path: Path) -> ImportedLog:
    """The log with a record per document."""
    parquet = _parquet()
    try:
        opened = parquet.ParquetFile(path)
        names = set(opened.schema_arrow.names)
        if not names >= COLUMNS:
            raise PrunusError(
                f"'{path}' has the columns {', '.join(sorted(names))[:200]}: no details of lighteval 0.11 to 0.13"
            )
        groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
        files.check_size(path, sum(group.total_byte_size for group in groups))
        batches = opened.iter_batches(batch_size=BATCH, columns=sorted(COLUMNS))
        rows = [row for batch in batches for row in batch.to_pylist()]
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these classes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PrunusError(f"'{path}' is damaged or half written ({reason})") from error
    general = _results(path).config_general
    return ImportedLog(
        TOOL,
        None,
        text_of(general.model_name),
        [_record(number, DetailsRow.of(row)) for number, row in enumerate(rows)],
        {
            "generation": files.sampling(general.model_config.generation_parameters),
            "system": general.model_config.system_prompt,
        },
    )


def _record(number: int, row: DetailsRow) -> LogRecord:
    doc, tokens, reasonings = row.doc, row.model_response.output_tokens, row.model_response.reasonings
    texts = [text for text in row.model_response.text if isinstance(text, str)]
    offered, golds = tuple(map(text_of, doc.choices)), doc.gold_index
    places = [gold for gold in (golds if isinstance(golds, list) else [golds]) if isinstance(gold, int)]
    targets = [offered[place] for place in places if 0 <= place < len(offered)]
    generated = "GENERATIVE" in str(doc.sampling_methods) or bool(texts)
    answer = next(iter(doc.specific.extracted_predictions), None) if len(texts) == 1 else None
    return LogRecord(
        task=text_of(doc.task_name).split("|")[0],
        question=text_of(doc.original_query or doc.query),
        place=text_of(doc.id) or str(number),
        draw=0,
        grades={name: LogGrade(score(value), text_of(answer) or None) for name, value in row.metric.items()},
        target="\n".join(targets),
        text="\n\n".join(texts),
        thinking=text_of(reasonings[0]) if len(reasonings) == 1 else "",
        choices=() if generated else offered,  # of a generative task they are the right answers
        output_tokens=len(tokens[0]) if generated and len(tokens) == 1 and isinstance(tokens[0], list) else None,
    )


def _results(path: Path) -> LightevalResults:
    """The results of the same run, in `results/MODEL` beside `details`; empty if they were not copied along."""
    date = path.parent.name
    parents = path.absolute().parents
    for depth, folder in enumerate(parents):
        if folder.name == "details":
            model = path.absolute().relative_to(folder).parts[: depth - 1]
            beside = folder.parent.joinpath("results", *model, f"results_{date}.json")
            return LightevalResults.of(
                files.json_file(beside) if re.match(r"\d{4}-", date) and beside.is_file() else {}
            )
    return LightevalResults()


def _parquet() -> Any:
    """The module pyarrow.parquet, imported only when it is needed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise PrunusError(f"details of lighteval need pyarrow: {pip('frames')}") from error
    return parquet
