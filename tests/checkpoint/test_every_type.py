"""Every type of decoder in transformers, each as one random model: streamed by blocks, and without two of them."""

from importlib.metadata import version

import models
import pytest
import torch
from dropped_blocks import KEPT, OTHERS, check_drops
from random_models import make_random_model
from whole_models import MODELS, REFUSED, RUN, check_streams, whole_model

from prunus.checkpoint.architecture import Unstreamable

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, about its own models
    pytest.mark.xdist_group("every type"),  # so that one worker alone imports the code of all of them
]
IS_CURRENT = version("transformers") == MODELS["transformers"]


@pytest.mark.slow
@pytest.mark.thorough("llama", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma3_text", "mamba2", "qwen3_next")
@torch.no_grad()
@pytest.mark.parametrize("model_type", RUN)
def test_streamed_blocks_equal_the_whole_model_with_all_blocks_and_without_two(tmp_path, model_type):
    """Both in one test: making a model and loading it take as long as either check."""
    folder = tmp_path / "m"
    try:
        config = make_random_model(model_type, folder)
    except Exception as error:
        if IS_CURRENT:
            raise
        pytest.skip(f"no tiny model of it with this transformers: {error}")
    if model_type in REFUSED:
        with pytest.raises(Unstreamable, match=REFUSED[model_type]):
            check_streams(folder, config)
        return
    whole = whole_model(folder)
    architecture = check_streams(folder, config, whole)
    if IS_CURRENT:
        found = models.facts(architecture)
        listed = {key: MODELS["types"][model_type][key] for key in found}
        assert found == listed, "docs/models.json is out of step: run scripts/models.py --facts"
    if model_type not in OTHERS:
        removed = (0, 2) if len(architecture.layers) > 2 else (0,)
        check_drops(folder, removed, KEPT.get(model_type), tmp_path, whole)
