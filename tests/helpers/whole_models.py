"""Whole models beside their blocks, for every type of decoder."""

from types import SimpleNamespace
from typing import Any

import models
import torch
from random_models import TYPES
from transformers import AutoModelForCausalLM

from prunus.checkpoint.architecture import Architecture, find_layers, skeleton
from prunus.checkpoint.model_folder import find_tensors
from prunus.checkpoint.names import Names
from prunus.checkpoint.resolve import load_config
from prunus.checkpoint.runner import Batch, Runner


def whole_model(folder):
    """transformers' own model of a folder, with its weights where torch puts them: some sums depend on that."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def block_outputs(model, ids_NT):
    """What the whole model gives after each block, and its logits."""
    outputs = []

    def keep(_module, _inputs, output):
        outputs.append((output[0] if isinstance(output, (tuple, list)) else output).clone())

    handles = [layer.register_forward_hook(keep) for layer in find_layers(model)[1]]
    logits = model(input_ids=ids_NT, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return outputs, logits


def token_batches(config):
    vocabulary, generator = config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, shape, generator=generator) for shape in ((2, 24), (1, 40), (2, 24))]


def read_block(runner, source, index):
    prefix = runner.architecture.block_prefix(index)
    names = [prefix + name for name in runner.architecture.layers[index].state_dict()]
    read = source.names.read(names, source.read)
    return {name.removeprefix(prefix): read[name] for name in names if name in read}


def opened_unchecked(folder) -> Any:
    """What a Runner needs of a checkpoint, also of one that Checkpoint refuses."""
    config, tensors = load_config(folder), find_tensors(folder)
    names = Names(Architecture(skeleton(config, torch.float32)).model, tensors)
    return SimpleNamespace(config=config, tensors=tensors, names=names, read=lambda name: tensors[name].read())


def check_streams(folder, config, whole=None):
    """Every block of every batch, and the logits, bit for bit; and what is written back. Returns the architecture.

    whole: transformers' own model of the folder; None to load it.
    """
    source = opened_unchecked(folder)
    runner = Runner(source, torch.float32, torch.device("cpu"))
    batches = [Batch(ids_NT) for ids_NT in token_batches(config)]
    whole = whole_model(folder) if whole is None else whole
    expected = [block_outputs(whole, batch.ids_NT) for batch in batches]
    rows = [runner.embed(batch) for batch in batches]
    for index in range(len(runner.architecture.layers)):
        stored = read_block(runner, source, index)
        block = runner.make_block(index, stored)
        for at, batch in enumerate(batches):
            rows[at] = runner.run_block(block, rows[at], batch)
            assert torch.equal(runner.architecture.from_rows(rows[at]), expected[at][0][index]), f"block {index}"
        check_written_back(runner, source, index, stored)
    for batch, rows_NTW, (_, logits) in zip(batches, rows, expected, strict=True):
        assert torch.equal(runner.logits(runner.states(rows_NTW, batch)), logits), "logits"
    return runner.architecture


def check_written_back(runner, source, index, stored):
    prefix = runner.architecture.block_prefix(index)
    changed = {prefix + name: tensor for name, tensor in stored.items()}
    back = source.names.as_stored(changed, source.read)
    assert set(back) == set(source.names.stored_for(changed))
    assert all(torch.equal(tensor, source.read(name)) for name, tensor in back.items()), f"block {index} on disk"


MODELS = models.read_data()

# What each check of the architecture refuses.
REFUSED = {
    "cpmant": "list of blocks",
    "dory": "block 0 is called as number 4",
    "hrm_text": "list of blocks",
    "inkling2_loop_text": "an argument of block 3 depends on earlier hidden states",
    "inkling2_text": "an argument of block 3 depends on earlier hidden states",
    "xlm": "list of blocks",
    "xmod": "default_language",
}

# Types that were not run, for want of a tiny configuration, and where that fails.
NOT_RUN = {
    "blt": "patches of bytes: sizes of four models in one",
    "dbrx": "transformers' own forward fails without clip_qkv",
    "dots3_note": "vision adapter",
    "dots3_note_text": "sizes that the table does not know",
    "emu3": "image tokenizer",
    "gemma3n": "needs timm",
    "gemma4_assistant": "runs beside another model",
    "gemma4_unified_assistant": "runs beside another model",
    "git": "vision tower",
    "mllama": "no text model of its own",
    "moss_transcribe_diarize": "audio tower",
    "musicgen": "no text configuration",
    "musicgen_melody": "no text configuration",
    "phi4_multimodal": "vision and audio towers",
    "prophetnet": "encoder and decoder of their own numbers of blocks",
    "reformer": "axial positions",
    "roc_bert": "sizes of shapes and pronunciations",
    "xlnet": "no limit on the length of a sequence",
}

RUN = [model_type for model_type in TYPES if model_type not in NOT_RUN]
