"""Int8 caches made of the inputs in decode_cases, each token and KV head with a scale of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from decode_cases import Inputs
from torch import Tensor

SCALE_LAYOUTS = ("tokens_first", "heads_first", "interleaved", "padded")


def in_int8(inputs: Inputs, scale_layout: str = "tokens_first") -> Inputs:
    """The call with its caches quantised; where they hold NaN, what must not matter, the scales do."""
    k, k_scale = _quantised(inputs.k_cache)
    v, v_scale = _quantised(inputs.v_cache)
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    options = inputs.options | {name: laid_out_scales(scale, scale_layout) for name, scale in scales.items()}
    return replace(inputs, options=options, k_cache=k, v_cache=v)


def laid_out_scales(scales: Tensor, layout: str) -> Tensor:
    """The same scales [batch, tokens, num_kv_heads] with other strides, and NaN in between."""
    if layout == "heads_first":
        return scales.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "interleaved":
        return torch.stack((scales, torch.full_like(scales, torch.nan)), -1)[..., 0]
    if layout == "padded":
        batch, tokens, heads = scales.shape
        wider = scales.new_full((batch + 1, tokens + 2, heads + 1), torch.nan)
        wider[1:, 2:, 1:] = scales
        return wider[1:, 2:, 1:]
    assert layout == "tokens_first"
    return scales


def _quantised(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Elements of the strides that the cache has, and their scales."""
    if cache.stride(0) == 0:  # one memory for all
        elements, scales = _quantised(cache[0].clone()[None])
        return elements.expand(cache.shape), scales.expand(cache.shape[:3])
    scales = cache.abs().amax(-1).float() / 127
    numbers = (cache / scales[..., None]).round().nan_to_num(-128.0)
    # An empty tensor of the same strides, since `to` keeps only those of dense ones.
    there = torch.empty_strided(cache.shape, cache.stride(), dtype=torch.int8, device=cache.device)
    return there.copy_(numbers), scales
