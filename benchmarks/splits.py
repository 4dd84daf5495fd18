"""How many pieces FlashDecoding cuts a context into: the rule of FlashAttention's splitKV kernels.

Source: num_splits_heuristic() of https://github.com/Dao-AILab/flash-attention, csrc/flash_attn/flash_api.cpp.
"""

import math

# From this share of the SMs on, whole items are said to fill the GPU.
FILLED = 0.8
# The fewest splits are taken that keep the SMs this busy, of the best that any number of splits does: every
# split more is a partial more to write and to merge.
GOOD_ENOUGH = 0.85
MOST_SPLITS = 128


def split_count(items: int, tiles: int, sms: int, most_ctas: int) -> int:
    """Splits of each item.

    Args:
        items: CTAs without a split, (sequence, group of KV heads) pairs. A CTA fills an SM.
        tiles: of the longest sequence; the cuts lie between them.
        sms: of the GPU.
        most_ctas: what the kernel can launch with splits.
    """
    if items >= FILLED * sms:
        return 1
    most = min(MOST_SPLITS, sms, tiles, most_ctas // items)
    # Numbers that give no shorter pieces than the number before only add empty ones.
    counts = [1, *(n for n in range(2, most + 1) if math.ceil(tiles / n) < math.ceil(tiles / (n - 1)))]
    best = max(wave_efficiency(items * n, sms) for n in counts)
    return next(n for n in counts if wave_efficiency(items * n, sms) >= GOOD_ENOUGH * best)


def wave_efficiency(ctas: int, sms: int) -> float:
    """Share of the SMs that have a CTA, over the waves in which the CTAs run."""
    return ctas / (sms * math.ceil(ctas / sms))
