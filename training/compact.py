"""A compact Qwen3 for training: fused projections, short-sequence attention, export to transformers.

Shapes: B sequences, T tokens, H hidden, N query heads, K key/value heads, D head width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

EPS = 1e-6
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults give 1.2 million parameters."""

    vocabulary: int
    hidden: int = 128
    blocks: int = 8
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    context: int = 2048


class Block(nn.Module):
    """One decoder block with q, k and v in one matrix, and gate and up in another."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.qkv = nn.Linear(shape.hidden, attention + 2 * kv, bias=False)
        self.o = nn.Linear(attention, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.input_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def forward(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        batch, tokens, hidden = x_BTH.shape
        heads, kv, width = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        qkv = self.qkv(F.rms_norm(x_BTH, (hidden,), self.input_norm, EPS))
        q, k, v = qkv.view(batch, tokens, heads + 2 * kv, width).transpose(1, 2).split([heads, kv, kv], 1)

        def rotate(t: Tensor, norm: Tensor) -> Tensor:
            a, b = F.rms_norm(t.float(), (width,), norm, EPS).chunk(2, -1)
            return torch.cat([a * cos_TD - b * sin_TD, b * cos_TD + a * sin_TD], -1).to(v.dtype)

        q, k = rotate(q, self.q_norm), rotate(k, self.k_norm)
        group = heads // kv
        if tokens > 256:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            # On the CPU, the backward pass of plain products is faster than the fused kernel's below about 256 tokens.
            score = (q.reshape(batch, kv, group * tokens, width) @ k.transpose(2, 3)).float() * width**-0.5
            future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
            score = score.view(batch, kv, group, tokens, tokens).masked_fill(future, float("-inf"))
            share = score.softmax(-1).to(v.dtype).view(batch, kv, group * tokens, tokens)
            mixed = (share @ v).view(batch, heads, tokens, width)
        x_BTH = x_BTH + self.o(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        gate, up = self.gate_up(F.rms_norm(x_BTH, (hidden,), self.mlp_norm, EPS)).chunk(2, -1)
        return x_BTH + self.down(F.silu(gate) * up)


class CompactModel(nn.Module):
    """The whole model; forward returns logits only at the requested positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.decoder_blocks():
            for linear in (block.qkv, block.o, block.gate_up, block.down):
                nn.init.normal_(linear.weight, std=0.7 / math.sqrt(linear.in_features))
            # Residual branches start small, scaled by the usual 1/sqrt(2 L).
            block.o.weight.data /= math.sqrt(2 * shape.blocks)
            block.down.weight.data /= math.sqrt(2 * shape.blocks)
        frequency = ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angle = torch.outer(torch.arange(shape.context).float(), frequency)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, ids_BT: Tensor, wanted: Tensor, compiled: bool = True) -> Tensor:
        """Return (len(wanted), vocabulary) logits at the flat positions wanted of ids_BT."""
        x = self.embedding(ids_BT)
        tokens = ids_BT.shape[1]
        for block in self.decoder_blocks():
            run = block if compiled else block.forward
            x = run(x, self.cos[:tokens], self.sin[:tokens])
        chosen = x.reshape(-1, self.shape.hidden)[wanted].float()
        return F.linear(F.rms_norm(chosen, (self.shape.hidden,), self.norm, EPS), self.embedding.weight)


def to_transformers(model: CompactModel, eos: int, pad: int) -> Qwen3ForCausalLM:
    """Return the same model as a Qwen3ForCausalLM (float32, tied embeddings)."""
    shape = model.shape
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm}
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for index, block in enumerate(model.decoder_blocks()):
        q, k, v = block.qkv.weight.split([attention, kv, kv])
        gate, up = block.gate_up.weight.chunk(2)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.o.weight,
            "self_attn.q_norm": block.q_norm,
            "self_attn.k_norm": block.k_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.down.weight,
            "input_layernorm": block.input_norm,
            "post_attention_layernorm": block.mlp_norm,
        }
        weights |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in parts.items()}
    exported = Qwen3ForCausalLM(config)
    state = {name: tensor.detach().clone().float() for name, tensor in weights.items()}
    missing, unexpected = exported.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"export does not fit Qwen3: missing {missing}, unexpected {unexpected}")
    exported.tie_weights()
    exported.generation_config.do_sample = False
    return exported
