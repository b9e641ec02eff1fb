"""`prunus` as a model of lm-evaluation-harness: it thinks within a budget before each answer.

    python -m prunus.evaluation.lm_eval.model --model prunus --model_args pretrained=FOLDER,budget=512 --tasks gsm8k

The harness finds only its own models, so this module is its command with ours registered. In Python, import this module
and call `lm_eval.simple_evaluate(model="prunus", ...)`. A task's question goes through the model's chat template, the
model thinks for at most `budget` tokens and answers; the harness sees only the answer, cut at the task's stop strings.
Likelihoods are computed by the harness, without thinking. docs/import.md lists the arguments.
"""

import sys
from collections import Counter
from importlib import import_module
from typing import Any

import torch

from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.evaluation.budget import Chain, Rules, answer_text, force_budgets
from prunus.evaluation.profiles.markers import encode_markers, encode_opened, ends_of_turn, render_prompts
from prunus.evaluation.resolved_plan import profile_of, tokens_needed
from prunus.recipes import EvalPlan
from prunus.visible import shortened

MODEL = "prunus"
import_module("lm_eval.models")  # registers the harness's own models, which it skips once another is registered
Base: Any = import_module("lm_eval.models.huggingface").HFLM


@import_module("lm_eval.api.registry").register_model(MODEL)
class BudgetForcing(Base):
    """A model of the harness. pretrained: `tiny`, a folder or a hub id. The other arguments are those of `prunus eval`.

    answer_tokens: None takes the task's max_gen_toks, or 1024 where it has none.
    """

    def __init__(
        self,
        pretrained: str,
        budget: int = 1024,
        mode: str = "strict",
        profile: str = "auto",
        answer_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        rows = int(str(batch_size)) if str(batch_size).isdecimal() else 64
        if not str(budget).isdecimal():
            raise PrunusError(f"budget must be a number of thinking tokens, not {budget}")
        chosen: Any = {"mode": mode, "profile": profile}  # the plan checks their values
        plan = EvalPlan(
            tasks=(MODEL,),
            budgets=(int(budget),),
            answer_tokens=answer_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=int(seed),
            **chosen,
        )
        folder = resolve(pretrained)
        checkpoint, tokenizer = ModelFolder(folder), load_tokenizer(folder)
        self.style = profile_of(plan, tokenizer, checkpoint)
        markers = encode_markers(self.style, tokenizer, plan.mode).ending_at(
            ends_of_turn(self.style, tokenizer, folder)
        )
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # without a device, the harness requests a GPU and falls back to what exists
        self.thinker = HFBackend(load_model(folder, device or "auto"), len(tokenizer))
        super().__init__(pretrained=self.thinker.model, tokenizer=tokenizer, batch_size=rows)
        self.rows, self.plan, self.is_templated = rows, plan, False
        self.context = checkpoint.context
        self.rules = Rules(markers, self.style.sampling, seed=plan.seed, context=self.context)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the harness's method; also note that --apply_chat_template is set, so that texts are whole prompts."""
        self.is_templated = True
        return str(super().apply_chat_template(chat_history, add_generation_prompt))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, in order; PrunusError where an answer would not fit into the model's context."""
        draws: Counter[tuple[str, str]] = Counter()
        chains: list[Chain] = []
        stops: list[list[str]] = []
        prompts = self.prompts([request.args[0] for request in requests])
        for request, prompt in zip(requests, prompts, strict=True):
            _, how = request.args
            key = (str(request.task_name), str(request.doc_id))
            cap = int(self.plan.answer_tokens or how.get("max_gen_toks") or 1024)
            chains.append(Chain(prompt, (*key, draws[key]), cap))
            draws[key] += 1
            until = how.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            self.check(chains[-1])
        answers: list[str] = []
        for start in range(0, len(chains), self.rows):
            batch = chains[start : start + self.rows]
            for [draw] in force_budgets(self.thinker, batch, self.plan.budgets, self.rules):
                answers.append(answer_text(self.style, self.tokenizer, draw))
        return [cut(answer, until) for answer, until in zip(answers, stops, strict=True)]

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text's prompt up to the start of the thinking."""
        rendered = texts if self.is_templated else render_prompts(self.style, self.tokenizer, texts)
        return [encode_opened(self.style, self.tokenizer, text) for text in rendered]

    def check(self, chain: Chain) -> None:
        """Raise PrunusError unless the chain fits into the context: no prompt is cut, only answers in mode legacy."""
        least = chain if self.plan.mode == "strict" else chain._replace(answer_tokens=1)
        needed = tokens_needed(self.plan.budgets[0], self.rules.markers, least)
        if needed > self.context:
            raise PrunusError(
                f"document {chain.key[1]} of '{chain.key[0]}' needs {needed} tokens with its thinking and answer, but"
                f" the model's context is {self.context}: lower budget or answer_tokens in --model_args"
            )


def cut(text: str, stops: list[str]) -> str:
    """The text before the first of these strings."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def main() -> None:
    """Run the harness's command; a PrunusError is printed as one line."""
    try:
        import_module("lm_eval.__main__").cli_evaluate()
    except PrunusError as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
