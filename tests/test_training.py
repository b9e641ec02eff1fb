"""The tiny reasoner's training: what it may see, that a seed fixes it, and that its export is the model trained."""

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch
from compact import CompactModel, Experts, Shape, to_transformers
from tokenizer import build
from torch import Tensor
from train import CURRICULUM, Writer, batches_by_length, tensors, training_batches
from transformers import AutoModelForCausalLM

from prunus.checkpoint.experts import Routed, observe_experts
from prunus.checkpoint.resolve import resolve, tiny_folder
from prunus.evaluation.tasks import tiny

EVERYTHING = CURRICULUM[-1][1]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tokenizer"))


def questions_of(writer, examples):
    """The question in each example, read back from its token ids."""
    texts = [writer.tokenizer.decode(example.ids) for example in examples]
    return [text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts]


@pytest.mark.slow
def test_held_out_questions_never_reach_training(tokenizer):
    writer = Writer(tokenizer, seed=0)
    # Multiplications of level 1 are few (6 300), so that a stream without the exclusion would hit some soon.
    writer.weights = {family: float(family == "mult") for family in tiny.FAMILIES}
    easy = (1, 0, 0, 0, 0, 0, 0)
    drawn = questions_of(writer, [writer.draw(easy) for _ in range(1500)])
    held_out = {p.question for seed in (10007, 4242, 555) for p in tiny.problem_set(seed, 40, ["mult"])}
    assert held_out.isdisjoint(drawn)
    assert writer.skipped["mult/1"] > 0


@pytest.mark.slow
def test_one_seed_gives_one_stream(tokenizer):
    def first(seed):
        batches = training_batches(Writer(tokenizer, seed), steps=50, tokens=4096)
        return [example.ids for example in next(batches)]

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.slow
def test_schedule_has_exactly_the_steps_asked_for(tokenizer):
    assert sum(1 for _ in training_batches(Writer(tokenizer, 0), steps=7, tokens=65536)) == 7


@pytest.mark.slow
def test_every_example_learns_its_right_answer_and_nothing_of_the_prompt(tokenizer):
    writer = Writer(tokenizer, seed=1)
    for example in itertools.islice((writer.draw(EVERYTHING) for _ in itertools.count()), 200):
        learned = [i for i, keep in zip(example.ids, example.learned, strict=True) if keep]
        prompt = example.ids[: example.learned.index(True)]
        assert tokenizer.decode(prompt).startswith("<|im_start|>user\n")
        assert tokenizer.decode(learned).endswith("}<|im_end|>")
        assert "<|im_start|>" not in tokenizer.decode(learned)


@pytest.mark.slow
def test_batches_lose_and_repeat_nothing(tokenizer):
    writer = Writer(tokenizer, seed=2)
    examples = [writer.draw(EVERYTHING) for _ in range(100)]
    batches = batches_by_length(examples, tokens=2048)
    assert sorted(id(e) for b in batches for e in b) == sorted(map(id, examples))
    for batch in batches:
        ids, wanted, targets = tensors(batch)
        assert ids.shape[0] == len(batch)
        assert len(wanted) == len(targets) == sum(sum(e.learned) for e in batch)
        flat = ids.reshape(-1)
        assert torch.equal(flat[wanted + 1], targets)


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "mixture"])
def test_export_is_the_model_that_was_trained(experts):
    torch.manual_seed(0)
    sizes = Shape(vocabulary=64, hidden=32, blocks=2, intermediate=48, heads=4, kv_heads=2, head_dim=8, context=512)
    model = CompactModel(replace(sizes, experts=experts))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    exported = to_transformers(model, eos=2, pad=0).eval()
    for tokens in (40, 300):  # on either side of the switch between the two ways to compute attention
        ids = torch.randint(0, 64, (2, tokens))
        with torch.no_grad():
            ours = model(ids, torch.arange(2 * tokens), compiled=False).view(2, tokens, 64)
            assert (ours - exported(input_ids=ids).logits).abs().max() < 1e-4


def test_load_balancing_loss_is_least_when_all_experts_are_used_equally():
    torch.manual_seed(0)
    mixture = Experts(Shape(vocabulary=64, hidden=8, intermediate=16, experts=4))
    mixture.router.weight.data = torch.eye(4, 8)
    even_SH, odd_SH = torch.eye(8)[[0, 1, 2, 3]] * 9, torch.eye(8)[[0, 0, 0, 0]] * 9
    mixture(even_SH)
    least = mixture.imbalance.item()
    mixture(odd_SH)
    assert least == pytest.approx(1, abs=0.02) and mixture.imbalance > 1.5
    assert mixture.tokens_E.sum() == 2 * 4 * 2  # two experts for each token


@pytest.mark.slow
def test_every_expert_of_the_shipped_mixture_is_used(below):
    folder = resolve("tiny-moe")
    lines = (tiny_folder() / "calibration.jsonl").read_text().splitlines()[:40]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens: dict[str, Tensor] = {}

    def count(routed: Routed) -> None:
        tokens.setdefault(routed.experts, torch.zeros(8, dtype=torch.long))[routed.expert] += len(routed.token_S)

    with observe_experts(model, count), torch.no_grad():
        for line in lines:
            model(input_ids=torch.tensor([json.loads(line)["token_ids"]]))
    read = sum(len(json.loads(line)["token_ids"]) for line in lines)
    assert len(tokens) == 8  # blocks
    for block, tokens_E in enumerate(tokens.values()):
        assert tokens_E.sum() == 2 * read
        below(f"block {block}: equal share / least", 2 * read / 8 / tokens_E.min().item(), 4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_reference_traces_prove_their_answers(family):
    """Each trace is checked by arithmetic of its own, not by the code that wrote it."""
    rng = random.Random(5)
    for level in tiny.LEVELS:
        for _ in range(20):
            problem = tiny.sample(family, level, rng)
            assert checked_answer(problem) == problem.answer


def checked_answer(problem: tiny.TinyProblem) -> str:
    """The answer, worked out from the question alone."""
    question = problem.question
    if problem.family == "chain":
        return str(eval_sum(question.removeprefix("Compute ").removesuffix(".")))
    if problem.family == "mult":
        left, right = question.removeprefix("Compute ").removesuffix(".").split("*")
        return str(int(left) * int(right))
    if problem.family == "twosum":
        numbers, goal = question.removeprefix("Which two of ").removesuffix("?").split(" add up to ")
        pairs = itertools.combinations(map(int, numbers.split(", ")), 2)
        (pair,) = [p for p in pairs if sum(p) == int(goal)]
        return f"{pair[0]}+{pair[1]}"
    if problem.family == "hops":
        arrows, rest = question.removeprefix("Map ").split(". From ")
        follows = dict(arrow.split() for arrow in arrows.split(", "))
        at, steps = rest.removesuffix(" steps.").split(" take ")
        for _ in range(int(steps)):
            at = follows[at]
        return at
    if problem.family == "clock":
        start, *shifts = question.removeprefix("Clock ").removesuffix(".").split()
        total = minutes(start) + sum((1 if s[0] == "+" else -1) * minutes(s[1:]) for s in shifts)
        return f"{total // 60:02d}:{total % 60:02d}"
    letters, operations = question.removeprefix("List: ").removesuffix(".").split(". Apply ")
    items = letters.split()
    for operation in operations.split(", "):
        match operation.split()[1]:
            case "reverse":
                items.reverse()
            case "left":
                items.append(items.pop(0))
            case "right":
                items.insert(0, items.pop())
            case "swap":
                items[0], items[1] = items[1], items[0]
    return " ".join(items)


def eval_sum(text: str) -> int:
    return sum(int(part) for part in text.replace("-", "+-").split("+"))


def minutes(clock: str) -> int:
    hours, rest = clock.split(":")
    return int(hours) * 60 + int(rest)
