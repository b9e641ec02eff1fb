"""Details of lighteval: `details/MODEL/DATE/details_TASK_DATE.parquet`. Needs pyarrow (the extra `frames`).

The file has the token ids of the outputs but no reason for their end. It names no version; its columns do not change
without one. Checked against lighteval 0.13.0.
"""

import re
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError, pip
from prunus.results.importing import files
from prunus.results.importing.files import Data, ImportedLog, LogGrade, LogRecord, part, score, text_of

TOOL, FILES = "lighteval", "details_*.parquet"
COLUMNS = {"doc", "metric", "model_response"}
BATCH = 256  # rows that are unpacked at a time


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
    config = part(_results(path), "config_general")
    settings = part(config, "model_config")
    return ImportedLog(
        TOOL,
        None,
        text_of(config.get("model_name")),
        [_record(number, row) for number, row in enumerate(rows)],
        {
            "generation": files.sampling(part(settings, "generation_parameters")),
            "system": settings.get("system_prompt"),
        },
    )


def _record(number: int, row: Data) -> LogRecord:
    doc, response = part(row, "doc"), part(row, "model_response")
    texts = [text for text in response.get("text") or [] if isinstance(text, str)]
    tokens = response.get("output_tokens") or []
    offered = tuple(map(text_of, doc.get("choices") or []))
    golds = doc.get("gold_index")
    places = [gold for gold in (golds if isinstance(golds, list) else [golds]) if isinstance(gold, int)]
    targets = [offered[place] for place in places if 0 <= place < len(offered)]
    generated = "GENERATIVE" in str(doc.get("sampling_methods")) or bool(texts)
    reasonings = response.get("reasonings") or []
    specific = part(doc, "specific").get("extracted_predictions")
    answer = specific[0] if len(texts) == 1 and isinstance(specific, list) and specific else None
    return LogRecord(
        task=text_of(doc.get("task_name")).split("|")[0],
        question=text_of(doc.get("original_query") or doc.get("query")),
        place=text_of(doc.get("id")) or str(number),
        draw=0,
        grades={name: LogGrade(score(value), text_of(answer) or None) for name, value in part(row, "metric").items()},
        target="\n".join(targets),
        text="\n\n".join(texts),
        thinking=text_of(reasonings[0]) if len(reasonings) == 1 else "",
        choices=() if generated else offered,  # of a generative task they are the right answers
        output_tokens=len(tokens[0]) if generated and len(tokens) == 1 and isinstance(tokens[0], list) else None,
    )


def _results(path: Path) -> Data:
    """The results of the same run, in `results/MODEL` beside `details`; empty if they were not copied along."""
    date = path.parent.name
    parents = path.absolute().parents
    for depth, folder in enumerate(parents):
        if folder.name == "details":
            model = path.absolute().relative_to(folder).parts[: depth - 1]
            beside = folder.parent.joinpath("results", *model, f"results_{date}.json")
            return files.json_file(beside) if re.match(r"\d{4}-", date) and beside.is_file() else {}
    return {}


def _parquet() -> Any:
    """The module pyarrow.parquet, imported only when it is needed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise PrunusError(f"details of lighteval need pyarrow: {pip('frames')}") from error
    return parquet
