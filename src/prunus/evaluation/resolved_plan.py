"""A plan made concrete for a model: prompts, caps, rules and batches, checked before anything is generated."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunus import progress
from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import say_once
from prunus.errors import PrunusError
from prunus.evaluation.budget import Chain, Rules
from prunus.evaluation.profiles import Profile
from prunus.evaluation.profiles.control import NativeControl, Switch, native_control, switch_off
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import Markers, encode_markers, encode_opened, ends_of_turn, render_prompts
from prunus.evaluation.tasks import TASKS, Problem, is_sampled, load_task, prompt_text, size_of
from prunus.plain_data import content_hash
from prunus.questions import LIMIT_SEED, leaders, question_key, without_numbers_and_names
from prunus.recipes import EvalPlan
from prunus.settings.budgets import OFF, UsualBudgets, without_off
from prunus.settings.serving import NO_SERVING, Serving
from prunus.store.rows import Key, PlannedProblems, ProblemRow, Run
from prunus.store.store import Store, same_groups
from prunus.store.stored import StoredModel, StoredPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prunus.evaluation.backends.served import ServedModel


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan made concrete for a model.

    chains: the first draw of each problem; if OFF is one of the budgets, also with the prompt without thinking that
    `switch` makes. native: how the engine or the model is told the budget, under native control. plan: as the store has
    it. subject: the part of the run's id that identifies the weights, such as their checksum. content: digest of
    configuration, tokenizer and chat template. longrope: whether the model has LongRoPE.
    """

    run_id: str
    subject: dict[str, str]
    content: str | None
    serving: Serving
    plan: StoredPlan
    profile: Profile
    tokenizer: "PreTrainedTokenizerBase"
    problems: list[Problem]
    chains: list[Chain]
    rules: Rules
    budgets: tuple[int, ...]
    reuse: bool
    batches: list[list[tuple[int, int]]]  # (index of the problem, draw)
    switch: Switch | None = None
    native: NativeControl | None = None
    longrope: bool = False

    @property
    def about(self) -> StoredModel:
        """Stored: the parts of the run's id besides weights and plan."""
        return about_of(self.content, self.serving)

    @property
    def groups(self) -> dict[str, list[str]]:
        """For each task, the group of each problem: the id of the first problem of the group, or its own id."""
        found = dict[str, list[str]]()
        for problem in self.problems:
            found.setdefault(problem.task, []).append(problem.group or problem.id)
        return found

    def of(self, **subject: str) -> "ResolvedPlan":
        """This plan for another model of the same configuration and tokenizer."""
        return replace(self, subject=subject, run_id=run_id_of(subject, self.plan, self.about))

    def served(self, serving: Serving) -> "ResolvedPlan":
        """This plan where the model is served with these settings."""
        return replace(self, serving=serving).of(**self.subject)

    def drawn(self, samples: int) -> "ResolvedPlan":
        """This plan with another number of draws of each problem."""
        plan = self.plan | {"samples": samples}
        batches = cut_into_batches([len(chain.prompt) for chain in self.chains], samples, self.rows)
        return replace(self, plan=plan, run_id=run_id_of(self.subject, plan, self.about), batches=batches)

    @property
    def rows(self) -> int:
        """The number of chains that are decoded together."""
        assert self.plan.batch_size is not None  # every plan is resolved with a number
        return self.plan.batch_size

    @property
    def cuts_chains(self) -> bool:
        """Whether all budgets of a draw are cut from one chain."""
        return self.reuse and self.rules.wait == 0 and self.native is None

    def keys(self, chains: Iterable[tuple[int, int]], budgets: Sequence[int] | None = None) -> set[Key]:
        """The store's keys of the rows of some chains. budgets: None for all of the plan."""
        return {(self.problems[index].id, b, draw) for index, draw in chains for b in budgets or self.budgets}

    def chain(self, index: int, draw: int) -> Chain:
        """A draw of the problem at this index."""
        first = self.chains[index]
        return first._replace(key=(*first.key[:2], draw))

    @property
    def ids(self) -> dict[str, list[str]]:
        """The ids of the problems of each task."""
        by_task: dict[str, list[str]] = {}
        for problem in self.problems:
            by_task.setdefault(problem.task, []).append(problem.id)
        return by_task

    @property
    def planned(self) -> PlannedProblems:
        """The problems as the store lists them."""
        return PlannedProblems(len(self.problems), self.ids)

    @property
    def largest_budget(self) -> int:
        """The largest budget in tokens; 0 if there is none but OFF."""
        return max(0, *self.budgets)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and the largest budget together."""
        return max((len(chain.prompt) for chain in self.chains), default=0) + self.largest_budget

    def answers_at_most(self, index: int) -> int:
        """Maximum number of tokens of all answers to a problem in a draw, an answer for each budget."""
        chain, closing = self.chains[index], self.rules.markers.shortest_closing
        appended = [budget + closing for budget in without_off(self.budgets)]
        if chain.off:
            appended.append(len(chain.off) - len(chain.prompt))
        return sum(self.rules.answer_cap(chain, tokens) for tokens in appended)


def resolve_plan(
    checkpoint: "ModelFolder | ServedModel",
    tokenizer: "PreTrainedTokenizerBase",
    plan: EvalPlan,
    serving: Serving = NO_SERVING,
    problems: list[Problem] | None = None,
) -> ResolvedPlan:
    """Stored: the plan with problems, profile, sampling and caps for a model; its `plan` is hashed into the run's id.

    problems: None to load those of the plan's tasks.

    Raises PrunusError if a chain does not fit into the model's context. In mode legacy an answer may run to the end of
    the context, as in the papers' harness, and needs room for one token only.
    """
    profile = profile_of(plan, tokenizer, checkpoint)
    if plan.closing is not None:
        profile = profile.closed_by(plan.closing)
    own = encode_markers(profile, tokenizer, plan.mode)
    markers = own.ending_at(ends_of_turn(profile, tokenizer, checkpoint.folder))
    sampled = [task for task in plan.tasks if is_sampled(task, plan.limit)]
    if problems is None:
        say_limits(plan)
        problems = load_problems(plan)
        for line in (groups_line(problems), templates_line(problems)):
            if line:
                progress.say(line)
    sampling = profile.sampling
    rows = other_rows(plan.rows, len(problems) * plan.samples) if plan.aa_control else plan.rows
    caps = [plan.answer_tokens or profile.answer_cap(problem.kind, plan.mode) for problem in problems]
    texts = [prompt_text(problem, plan.prompt) for problem in problems]
    prompts, context = encode_problems(profile, tokenizer, texts), checkpoint.context
    switch = switch_off(profile, tokenizer) if OFF in plan.budgets else None
    rendered = switch.render(tokenizer, texts) if switch else ()
    without = [switch.encode(tokenizer, prompt) for prompt in rendered] if switch else [()] * len(texts)
    chains = [
        Chain(prompt, (problem.task, problem.id, 0), cap, off)
        for problem, prompt, cap, off in zip(problems, prompts, caps, without, strict=True)
    ]
    least = chains if plan.mode == "strict" else [chain._replace(answer_tokens=1) for chain in chains]
    plan = replace(plan, budgets=allowed_budgets(plan.budgets, profile, context, markers, least))
    largest = max(0, *plan.budgets)
    check_context(context, "model", largest, markers, least)
    native = native_control(profile, tokenizer, plan.budgets) if plan.control == "native" else None
    if native is not None:
        if switch is not None and switch.block:
            raise PrunusError(
                f"budget off of profile '{profile.name}' appends an empty block, which a chat request cannot hold:"
                " leave off or --control native out"
            )
        progress.say(f"control native: {native}")
    if switch is not None:
        progress.say(f"budget off: {switch}")
    appended = len(tokenizer.encode(switch.block, add_special_tokens=False)) if switch and switch.block else 0
    resolved = replace(plan, base_samples=None).to_json() | {
        # The names of the problems' tasks, since a path can be typed in several ways.
        "tasks": list(dict.fromkeys(problem.task for problem in problems)),
        "profile": profile.name,
        "strings": profile.strings(),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "batch_size": rows,
        "answer_tokens": caps[0]
        if len(set(caps)) == 1
        else {p.kind: cap for p, cap in zip(problems, caps, strict=True)},
        "problems": digest_of(problems),
    }
    # Keys are left out where they are empty, so that ids do not depend on what a plan does not use.
    used = {
        "off": switch and switch.describe(),
        "native": native and native.describe(),
        "context": context if max(tokens_needed(largest, markers, chain) for chain in chains) > context else None,
        "limit_of": {"seed": LIMIT_SEED, "tasks": sampled, "sizes": [size_of(TASKS[task]) for task in sampled]}
        if sampled
        else None,
        "end_ids": sorted((markers.think_stops - own.think_stops) | (markers.answer_stops - own.answer_stops)),
    }
    resolved |= {key: value for key, value in used.items() if value}
    subject = {"model": checkpoint.checksum()}
    return ResolvedPlan(
        run_id="",
        subject=subject,
        content=checkpoint.content(),
        serving=serving,
        plan=StoredPlan.of(resolved),
        profile=profile,
        tokenizer=tokenizer,
        problems=problems,
        chains=chains,
        rules=Rules(markers, sampling, plan.wait, plan.seed, context, appended),
        budgets=plan.budgets,
        reuse=plan.reuse,
        batches=cut_into_batches([len(prompt) for prompt in prompts], plan.samples, rows),
        switch=switch,
        native=native,
        longrope=has_longrope(checkpoint.folder),
    ).of(**subject)


def about_of(content: str | None, serving: Serving) -> StoredModel:
    """Stored: the parts of a run's id besides weights and plan; empty parts are left out."""
    parts = {"content": content, "serving": serving.to_json()}
    return StoredModel.of({key: value for key, value in parts.items() if value})


def run_id_of(subject: Mapping[str, str], plan: StoredPlan, model: StoredModel) -> str:
    """Stored: the id of a run. subject, plan: as of ResolvedPlan. model: as ResolvedPlan.about, or with more fields."""
    return content_hash({**subject, "plan": plan.data, **model.about})


def id_of(run: Run) -> str:
    """Stored: the id of a stored run of a model without steps, from the store's description of model and plan."""
    assert run.model.checksum is not None
    return run_id_of({"model": run.model.checksum}, run.plan, run.model)


def profile_of(
    plan: EvalPlan, tokenizer: "PreTrainedTokenizerBase", checkpoint: "ModelFolder | ServedModel"
) -> Profile:
    """The plan's profile, fitted to the model, with the plan's sampling."""
    given = {name: getattr(plan, name) for name in ("temperature", "top_p", "top_k")}
    return resolve_profile(plan.profile, tokenizer, checkpoint.manifest, plan.mode, checkpoint.folder, given)


def other_rows(rows: int, chains: int) -> int:
    """Stored: a batch size with which this number of chains is decoded in other batches than with `rows`."""
    return max(1, min(rows, chains) // 2) if rows > 1 else 2


def encode_problems(profile: Profile, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids of each problem's prompt with the opened thinking; prints a warning if the template changes problems."""
    rendered = render_prompts(profile, tokenizer, texts)
    if changed := sum(text not in prompt for text, prompt in zip(texts, rendered, strict=True)):
        progress.say(f"warning: the model's chat template changes the text of {changed} of {len(texts)} problems")
    return [encode_opened(profile, tokenizer, prompt) for prompt in rendered]


def say_limits(plan: EvalPlan) -> None:
    """Print which problems the plan's limit takes."""
    if plan.limit is None:
        return
    if files := [task for task in plan.tasks if task not in TASKS]:
        say_once(
            f"limit {plan.limit} of {' and '.join(files)}: the first problems of the file, in its order; shuffle it if"
            " that goes by difficulty or subject"
        )
    if sets := [task for task in plan.tasks if is_sampled(task, plan.limit)]:
        said = "a sample, always the same one, to which a larger limit adds problems"
        say_once(f"limit {plan.limit} of {' and '.join(sets)}: {said}")


def load_problems(plan: EvalPlan) -> list[Problem]:
    """The problems of all tasks. Raises PrunusError if two have the same id."""
    problems = [problem for task in plan.tasks for problem in load_task(task, plan.limit)]
    seen: dict[str, str] = {}
    for problem in problems:
        if problem.id in seen:
            raise PrunusError(
                f"problem '{problem.id}' is in task '{seen[problem.id]}' and in '{problem.task}':"
                " evaluate these tasks one by one, or rename it"
            )
        seen[problem.id] = problem.task
    return problems


def tokens_needed(budget: int, markers: Markers, chain: Chain) -> int:
    """The maximum number of tokens of a chain: prompt (with the opening marker), thinking, closing and answer."""
    return len(chain.prompt) - len(markers.start) + markers.longest + budget + chain.answer_tokens


def check_context(context: int, owner: str, budget: int, markers: Markers, chains: Sequence[Chain]) -> None:
    """Raise PrunusError unless every chain's prompts, thinking, markers and answer fit into the context.

    owner: `model` or `engine`, whose context it is, for the message.
    """
    for chain in chains:
        needed, cap = tokens_needed(budget, markers, chain), chain.answer_tokens
        if needed > context:
            template = len(chain.prompt) - len(markers.start)
            raise PrunusError(
                f"problem '{chain.key[1]}' needs {needed} tokens ({template} of prompt, {budget} to think,"
                f" {markers.longest} of markers, {cap} to answer), but the {owner}'s context is {context}:"
                " lower the budget or --answer-tokens"
            )
        if chain.off and len(chain.off) + cap > context:
            raise PrunusError(
                f"problem '{chain.key[1]}' needs {len(chain.off) + cap} tokens at budget off ({len(chain.off)} of"
                f" prompt, {cap} to answer), but the {owner}'s context is {context}: lower --answer-tokens"
            )


def allowed_budgets(
    budgets: Sequence[int], profile: Profile, context: int, markers: Markers, chains: Sequence[Chain]
) -> tuple[int, ...]:
    """The requested budgets; of default ones (UsualBudgets, or the profile's), only those that fit into the context.

    A profile replaces the usual budgets by its own largest ones, as many as there are usual ones. A message says so, or
    which budgets are left out. If none fits, the smallest remains, so that check_context raises an error with the
    reason.
    """
    if not isinstance(budgets, UsualBudgets):
        return tuple(budgets)
    wanted = profile.budgets[-len(budgets) :] if profile.budgets else tuple(budgets)
    needed = max(tokens_needed(0, markers, chain) for chain in chains)
    taken = tuple(budget for budget in wanted if budget + needed <= context) or wanted[:1]
    listed = f"{'budgets' if len(taken) > 1 else 'budget'} {', '.join(map(str, taken))}"
    if len(taken) < len(wanted):
        left = ", ".join(str(budget) for budget in wanted if budget not in taken)
        say_once(
            f"{listed}, without {left}: the model's context is {context:,} tokens, of which prompt, markers and answer"
            f" take up to {needed:,}"
        )
    elif profile.budgets:
        say_once(f"{listed}, since profile '{profile.name}' names them")
    return taken


def cut_into_batches(lengths: Sequence[int], samples: int, size: int) -> list[list[tuple[int, int]]]:
    """Batches of at most `size` (problem index, draw), ordered by draw, then from short to long prompts."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    chains = [(index, draw) for draw in range(samples) for index in order]
    return [list(chains[start : start + size]) for start in range(0, len(chains), size)]


def digest_of(problems: Sequence[Problem]) -> str:
    """Stored: a hash of the problems (16 hex digits), by which a changed file becomes another run."""
    text = "\n".join(f"{problem.task}\t{problem.id}\t{problem.digest}" for problem in problems)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def problem_row(problem: Problem) -> ProblemRow:
    """The stored form of a problem; for a private one without its texts."""
    choices = tuple("" for _ in problem.choices) if problem.private else problem.choices
    answer_formats, text = (None, None) if problem.private else (problem.answer_formats, problem.question)
    key = question_key(problem.question, problem.choices)
    group = problem.group or problem.id
    return ProblemRow(
        problem.task, problem.id, problem.gold, problem.kind, choices, problem.digest, answer_formats, key, group, text
    )


def store_problems(store: Store, problems: Sequence[Problem]) -> None:
    """Add problems to a store, and print a warning if the groups of problems that it already has have changed."""
    renew_groups(store, problems)
    store.add_problems(problem_row(problem) for problem in problems)


def renew_groups(store: Store, problems: Sequence[Problem]) -> None:
    """Update the groups of those problems that the store already has, and print a warning if they have changed."""
    stored, known = store.groups(), store.problem_ids()
    kept = [problem for problem in problems if problem.id in known]
    now = {problem.id: problem.group or problem.id for problem in kept}
    before = {problem: stored.get(problem, problem) for problem in now}
    if not same_groups(now, before):
        store.add_problems(problem_row(problem) for problem in kept)
        progress.say(
            f"warning: {len(now)} problems of which {store.path} has results form {len(set(now.values()))} groups now,"
            f" {len(set(before.values()))} before: from now on its verdicts count the new groups, and"
            " comparisons by the old ones as looks"
        )


def groups_line(problems: Sequence[Problem]) -> str | None:
    """A line that says how many groups the problems form; None if each problem is alone."""
    groups = {problem.group or problem.id for problem in problems}
    if len(groups) == len(problems):
        return None
    return (
        f"{len(problems)} problems form {len(groups)} groups, since some share a `group` or have equal or nearly equal"
        " questions: each group counts as one observation"
    )


def templates_line(problems: Sequence[Problem]) -> str | None:
    """A warning about problems that differ only in numbers and names, with an example; None if there are none.

    Problems whose set names their group, even a group of one problem, are left out.
    """
    unknown = [problem for problem in problems if not problem.keyed]
    texts = [without_numbers_and_names("\n".join([problem.question, *sorted(problem.choices)])) for problem in unknown]
    first = leaders(texts, [problem.group for problem in unknown])
    apart: dict[int, dict[str, Problem]] = {}  # template -> {group: a problem of the group}
    for place, problem in zip(first, unknown, strict=True):
        apart.setdefault(place, {}).setdefault(problem.group or problem.id, problem)
    templates = [list(groups.values()) for groups in apart.values() if len(groups) > 1]
    if not templates:
        return None
    largest = max(templates, key=len)
    shown = " and ".join(
        problem.id if problem.private else f"'{shortened(problem.question)}'" for problem in largest[:2]
    )
    number, many = sum(map(len, templates)), f"{len(templates)} templates" if len(templates) > 1 else "one template"
    return (
        f"warning: {number} of {len(problems)} problems are equal but for numbers and names, as of {many}, such as"
        f" {shown}: problems of one template may be solved or missed together, but count as {number} observations;"
        " if the templates are a sample, give the problems of each the same `group` in a JSONL file"
    )


def shortened(text: str, most: int = 70) -> str:
    """The beginning of a text in a line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
