"""ARC-Challenge (Clark et al. 2018, arXiv:1803.05457): school science, three to five options. CC BY-SA licence."""

from prunus.evaluation.tasks.hub import hub_rows, row_field
from prunus.evaluation.tasks.options import choice_problem
from prunus.evaluation.tasks.problem import Problem, Task


def load() -> list[Problem]:
    """The 1172 test questions; some call their options 1 to 4, which become A to D."""
    problems = []
    for row in hub_rows("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 1172):
        labels, texts = (list((row.get("choices") or {}).get(key) or []) for key in ("label", "text"))
        answer = row_field("arc_challenge", row, "answerKey")
        gold = labels.index(answer) if answer in labels else -1
        problems.append(choice_problem("arc_challenge", row, "id", texts, gold))
    return problems


TASKS = (
    Task(
        "arc_challenge",
        "allenai/ai2_arc, ARC-Challenge, test",
        "choice",
        "1172 questions of school science",
        load,
        1172,
    ),
)
