"""Attention and rotary embeddings, which are operators since opset 23."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from firewall.lift.node import Node, Operator, Refusal, Run, in_single
from firewall.lift.tensors import dtype_of


def _attention(node: Node) -> Run:
    if node.has(6):
        raise Refusal("nonpad_kv_seqlen")
    if node.integer("left_window_size", -1) >= 0 or node.integer("right_window_size", -1) >= 0:
        raise Refusal("a sliding window")
    if node.results > 3 and node.integer("qk_matmul_output_mode", 0):
        raise Refusal("qk_matmul_output_mode other than 0")
    heads, key_heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    causal, softcap = node.flag("is_causal"), node.number("softcap", 0.0)
    if softcap and node.opset < 24 and (causal or node.has(3)):
        raise Refusal("softcap with a mask before opset 24")
    scale = node.attributes.get("scale")
    wanted = node.attributes.get("softmax_precision")
    precision = None if wanted is None else dtype_of(int(wanted))

    def split(x: Tensor, count: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> Any:
        joined = query.ndim == 3
        if joined:
            query = split(query, heads)
            key, value = split(key, key_heads), split(value, key_heads)
        past = 0
        if past_key is not None and past_value is not None:
            past = past_key.shape[2]
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        present = key, value
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (one.repeat_interleave(repeats, 1) for one in (key, value))
        # As specified: both factors take the root of the scale.
        root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else float(scale))
        scores = (query * root) @ (key * root).transpose(-1, -2)
        biased = softcap * torch.tanh(scores / softcap) if softcap else scores
        bias = _bias(scores, mask, causal, past)
        if bias is not None:
            biased = biased + bias
        weights = torch.softmax(biased, -1, dtype=precision).to(query.dtype)
        if bias is not None:
            # A query that may attend to nothing answers 0.
            nothing = (bias == -math.inf).all(-1, keepdim=True)
            weights = torch.where(nothing, torch.zeros_like(weights), weights)
        y = weights @ value
        if joined:
            y = y.transpose(1, 2).flatten(2)
        return y if node.results == 1 else (y, *present, scores)[: node.results]

    return in_single(attend)


def _bias(scores: Tensor, mask: Tensor | None, causal: bool, past: int) -> Tensor | None:
    """What is added to the scores: 0, or minus infinity where a query may not look."""
    bias = None
    queries, keys = scores.shape[-2:]
    if causal:
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(past)
        bias = torch.zeros_like(allowed, dtype=scores.dtype).masked_fill(~allowed, -math.inf)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    if mask.shape[-1] < keys:
        mask = F.pad(mask, (0, keys - mask.shape[-1]), value=-math.inf)
    return mask if bias is None else bias + mask


def _rotary_embedding(node: Node) -> Run:
    heads, width = node.integer("num_heads", 0), node.integer("rotary_embedding_dim", 0)
    interleaved = node.flag("interleaved")

    def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        joined = x.ndim == 3
        # [N, S, H, D]
        y = x.reshape(*x.shape[:2], heads, -1) if joined else x.transpose(1, 2)
        size = width or y.shape[-1]
        turned, kept = y[..., :size], y[..., size:]
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        if interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned.chunk(2, -1)
        pair = [cos * first - sin * second, sin * first + cos * second]
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        y = torch.cat([turned, kept], -1)
        return y.reshape(x.shape) if joined else y.transpose(1, 2)

    return rotate


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Attention": Operator(_attention),
        "RotaryEmbedding": Operator(_rotary_embedding),
    }
)
