"""The tiny reasoner's tokenizer: byte-level BPE of a few hundred entries, trained on its own problems.

Digits and the letters of lists stay single tokens, so that arithmetic and look-ups work on them; other text is encoded
as bytes. `<think>` and `</think>` are plain added tokens, as in Qwen3.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prunus.evaluation.tasks import tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 2048
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


def corpus(problems: int = 6000) -> Iterator[str]:
    """Return the text of questions, traces and answers, from a fixed seed."""
    rng = random.Random(1)
    for _ in range(problems):
        problem = tiny.sample(rng.choice(tiny.FAMILIES), rng.randint(1, 4), rng)
        yield "user\n" + problem.question
        yield "assistant\n" + "\n".join(problem.trace) + "\n\n\\boxed{" + problem.answer + "}"


def build(folder: Path, entries: int = 448) -> PreTrainedTokenizerFast:
    """Return a trained tokenizer, also written to folder."""
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\\boxed\{| ?[A-Za-z]+|\d|\n+| ?[^\sA-Za-z\d]| ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=20,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast
