"""A compact Qwen3, dense or with experts, for training: fused projections, short-sequence attention, export.

Shapes: B sequences, T tokens, H hidden, N query heads, K key/value heads, D head width, S = B T tokens, E experts,
C experts per token, F width of an expert.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

EPS = 1e-6
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults give 1.2 million parameters.

    With experts, `intermediate` is the total width of the experts that one token uses.
    """

    vocabulary: int
    hidden: int = 128
    blocks: int = 8
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    context: int = 2048
    experts: int = 0  # 0: one MLP for all tokens
    experts_per_token: int = 2

    @property
    def expert_width(self) -> int:
        return self.intermediate // self.experts_per_token


class Experts(nn.Module):
    """A mixture of experts: softmax over the router's logits, the best C, their weights divided by their sum.

    The matrices of all experts are stacked, so that an optimizer sees two matrices.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.gate_up = nn.Linear(shape.hidden, shape.experts * 2 * shape.expert_width, bias=False)
        self.down = nn.Linear(shape.experts * shape.expert_width, shape.hidden, bias=False)
        self.imbalance = torch.zeros(())  # of the last forward pass: 1 if all experts are used equally
        self.tokens_E = torch.zeros(shape.experts, dtype=torch.long)  # since it was last reset

    def forward(self, x_SH: Tensor) -> Tensor:
        experts, chosen = self.shape.experts, self.shape.experts_per_token
        with torch.autocast("cpu", enabled=False):
            probability_SE = F.linear(x_SH.float(), self.router.weight).softmax(-1)
        weight_SC, index_SC = probability_SE.topk(chosen, dim=-1)
        weight_SC = weight_SC / weight_SC.sum(-1, keepdim=True)
        order = index_SC.flatten().argsort(stable=True)
        counts_E = index_SC.flatten().bincount(minlength=experts)
        self.tokens_E += counts_E
        # The loss of Switch Transformers (arXiv 2101.03961, equation 4), over C choices.
        self.imbalance = (counts_E / index_SC.numel() * probability_SE.mean(0)).sum() * experts
        # Every expert gets the same number of rows, a multiple of 128 with zeros at the end, because oneDNN compiles a
        # kernel for each new shape, which takes longer than the additional rows.
        rows = int((counts_E.max() + 127) // 128 * 128)
        starts_E = counts_E.cumsum(0) - counts_E
        expert = torch.arange(experts).repeat_interleave(counts_E)
        place = expert * rows + torch.arange(len(order)) - starts_E[expert]
        token = order // chosen
        width = self.shape.expert_width
        x_ERH = x_SH.new_zeros(experts * rows, x_SH.shape[1]).index_copy(0, place, x_SH[token]).view(experts, rows, -1)
        gate_up_EHF = self.gate_up.weight.view(experts, 2 * width, -1).transpose(1, 2)
        down_EFH = self.down.weight.view(-1, experts, width).permute(1, 2, 0)
        gate_ERF, up_ERF = torch.bmm(x_ERH, gate_up_EHF).chunk(2, -1)
        y_ERH = torch.bmm(F.silu(gate_ERF) * up_ERF, down_EFH)
        weighted = y_ERH.flatten(0, 1)[place] * weight_SC.flatten()[order, None]
        return torch.zeros_like(x_SH, dtype=weighted.dtype).index_add(0, token, weighted)

    def exported(self) -> dict[str, Tensor]:
        experts, width = self.shape.experts, self.shape.expert_width
        return {
            "gate.weight": self.router.weight,
            "experts.gate_up_proj": self.gate_up.weight.view(experts, 2 * width, -1),
            "experts.down_proj": self.down.weight.view(-1, experts, width).transpose(0, 1),
        }


class MLP(nn.Module):
    """The MLP of a dense block, with gate and up in one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x_SH: Tensor) -> Tensor:
        gate, up = self.gate_up(x_SH).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def exported(self) -> dict[str, Tensor]:
        gate, up = self.gate_up.weight.chunk(2)
        return {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": self.down.weight}


class Block(nn.Module):
    """One decoder block with q, k and v in one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.qkv = nn.Linear(shape.hidden, attention + 2 * kv, bias=False)
        self.o = nn.Linear(attention, shape.hidden, bias=False)
        self.mlp: MLP | Experts = Experts(shape) if shape.experts else MLP(shape)
        self.input_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def forward(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x_BTH, mlp_input_SH = self.attend(x_BTH, cos_TD, sin_TD)
        return x_BTH + self.mlp(mlp_input_SH).view_as(x_BTH)

    def attend(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states after attention, and the same after the norm, as the MLP reads them."""
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
        return x_BTH, F.rms_norm(x_BTH, (hidden,), self.mlp_norm, EPS).view(-1, hidden)

    def compile_parts(self) -> None:
        """Compile what has shapes that do not depend on the router's choice."""
        if isinstance(self.mlp, Experts):
            self.attend = torch.compile(self.attend, dynamic=True)
        else:
            self.compile(dynamic=True)


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
            for linear in (module for module in block.modules() if isinstance(module, nn.Linear)):
                nn.init.normal_(linear.weight, std=0.7 / math.sqrt(linear.in_features))
            if shape.experts:
                block.mlp.down.weight.data *= math.sqrt(shape.experts)  # an expert reads 1/E of the stacked columns
            # Residual branches start small, scaled by the usual 1/sqrt(2 L).
            block.o.weight.data /= math.sqrt(2 * shape.blocks)
            block.mlp.down.weight.data /= math.sqrt(2 * shape.blocks)
        frequency = ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angle = torch.outer(torch.arange(shape.context).float(), frequency)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def mixtures(self) -> list[Experts]:
        return [block.mlp for block in self.decoder_blocks() if isinstance(block.mlp, Experts)]

    def forward(self, ids_BT: Tensor, wanted: Tensor, compiled: bool = True) -> Tensor:
        """Return (len(wanted), vocabulary) logits at the flat positions wanted of ids_BT."""
        x = self.embedding(ids_BT)
        tokens = ids_BT.shape[1]
        for block in self.decoder_blocks():
            run = block if compiled else block.forward
            x = run(x, self.cos[:tokens], self.sin[:tokens])
        chosen = x.reshape(-1, self.shape.hidden)[wanted].float()
        return F.linear(F.rms_norm(chosen, (self.shape.hidden,), self.norm, EPS), self.embedding.weight)


def to_transformers(model: CompactModel, eos: int, pad: int) -> PreTrainedModel:
    """Return the same model as a Qwen3 or Qwen3-MoE of transformers (float32, tied embeddings)."""
    shape = model.shape
    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": True,
        "max_position_embeddings": shape.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm}
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for index, block in enumerate(model.decoder_blocks()):
        q, k, v = block.qkv.weight.split([attention, kv, kv])
        parts = {
            "self_attn.q_proj.weight": q,
            "self_attn.k_proj.weight": k,
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": block.o.weight,
            "self_attn.q_norm.weight": block.q_norm,
            "self_attn.k_norm.weight": block.k_norm,
            "input_layernorm.weight": block.input_norm,
            "post_attention_layernorm.weight": block.mlp_norm,
        }
        parts |= {f"mlp.{name}": tensor for name, tensor in block.mlp.exported().items()}
        weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in parts.items()}
    exported: PreTrainedModel
    if shape.experts:
        experts = {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.expert_width,
            "norm_topk_prob": True,
        }
        exported = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts))
    else:
        exported = Qwen3ForCausalLM(Qwen3Config(**sizes))
    state = {name: tensor.detach().clone().float() for name, tensor in weights.items()}
    missing, unexpected = exported.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"export does not fit Qwen3: missing {missing}, unexpected {unexpected}")
    exported.tie_weights()
    exported.generation_config.do_sample = False
    return exported
