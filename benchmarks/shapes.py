"""The shapes that are measured, as data. Lengths in tokens; 1k = 1024 tokens."""

import random
from dataclasses import dataclass, replace

K = 1024


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    dim: int


HEADS = {
    "llama8b": Heads(32, 8, 128),
    "70b/tp8": Heads(8, 1, 128),  # one GPU's part of a 70B model whose heads are split over eight
    "phi3m": Heads(40, 10, 128),
    "mha32": Heads(32, 32, 128),
    "gqa16": Heads(64, 4, 128),
    "mha32 d64": Heads(32, 32, 64),
    "mha56 d64": Heads(56, 56, 64),
}


@dataclass(frozen=True)
class Shape:
    """One batch of decode: every sequence has q_len query tokens and `lengths[i]` tokens in the cache."""

    set_name: str
    name: str
    heads: Heads
    lengths: tuple[int, ...]  # [batch]
    quick: bool = False  # measured with --quick too
    twin_of: str | None = None  # the ragged shape that this is a uniform twin of
    q_len: int = 1  # the query tokens are the newest in the cache, so no length is less

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def max_tokens(self) -> int:
        return max(self.lengths)

    @property
    def ragged(self) -> bool:
        return len(set(self.lengths)) > 1

    @property
    def q_shape(self) -> tuple[int, ...]:
        """[batch, query heads, head_dim], with several query tokens [batch, q_len, query heads, head_dim]."""
        tokens = (self.q_len,) if self.q_len > 1 else ()
        return (self.batch, *tokens, self.heads.query, self.heads.dim)

    def kv_bytes(self, element_bytes: int) -> int:
        """Bytes of K and V that a call has to read."""
        return 2 * sum(self.lengths) * self.heads.kv * self.heads.dim * element_bytes


def tokens_text(tokens: int) -> str:
    return f"{tokens // K}k" if tokens % K == 0 else str(tokens)


def uniform(set_name: str, heads: str, batch: int, tokens: int, quick: bool = False) -> Shape:
    name = f"{heads} B{batch} {tokens_text(tokens)}"
    return Shape(set_name, name, HEADS[heads], (tokens,) * batch, quick)


def ragged(set_name: str, heads: str, what: str, lengths: tuple[int, ...], quick: bool = False) -> Shape:
    return Shape(set_name, f"{heads} {what}", HEADS[heads], lengths, quick)


def speculative(shape: Shape, q_len: int) -> Shape:
    """`shape` in a step that checks q_len - 1 drafted tokens."""
    return replace(shape, name=f"{shape.name} q{q_len}", q_len=q_len)


# 32 draws of exp(N(ln 4096, 1.2)), clamped to 16..131072.
LOGNORMAL = (
    1530, 6584, 12045, 774, 3352, 5767, 1897, 1401, 12451, 2154, 1018, 2358, 9585, 13808, 5400, 15153,
    613, 2774, 41332, 2756, 5197, 10469, 14252, 1717, 3186, 3163, 463, 2706, 345, 9197, 836, 801,
)  # fmt: skip
ZIPF = tuple(64 * K // (i + 1) + 17 for i in range(64))
ONE_LONG = (128 * K,) + (2 * K,) * 15


def short_lengths(batch: int, longest: int) -> tuple[int, ...]:
    """Uniform in 1..longest."""
    draw = random.Random(38)  # with this seed, 256 of 1..511 sum to 260 MB of llama8b cache in 16 bits
    return tuple(draw.randint(1, longest) for _ in range(batch))


SHAPES = (
    uniform("uniform", "llama8b", 1, 1 * K, quick=True),
    uniform("uniform", "llama8b", 1, 4 * K),
    uniform("uniform", "llama8b", 1, 16 * K),
    uniform("uniform", "llama8b", 1, 64 * K, quick=True),
    uniform("uniform", "llama8b", 1, 128 * K),
    uniform("uniform", "llama8b", 1, 512 * K),
    uniform("uniform", "llama8b", 8, 1 * K),
    uniform("uniform", "llama8b", 8, 8 * K),
    uniform("uniform", "llama8b", 8, 32 * K, quick=True),
    uniform("uniform", "llama8b", 32, 4 * K),
    uniform("uniform", "llama8b", 64, 2 * K),
    uniform("uniform", "llama8b", 128, 1 * K),
    uniform("uniform", "70b/tp8", 1, 64 * K, quick=True),
    uniform("uniform", "70b/tp8", 16, 8 * K),
    uniform("uniform", "70b/tp8", 64, 8 * K),
    uniform("uniform", "phi3m", 1, 8 * K),
    uniform("uniform", "phi3m", 1, 64 * K),
    uniform("uniform", "phi3m", 1, 128 * K),
    uniform("uniform", "mha32", 1, 4 * K),
    uniform("uniform", "mha32", 1, 64 * K),
    uniform("uniform", "mha32", 1, 256 * K),
    uniform("uniform", "mha32", 4, 16 * K),
    uniform("uniform", "gqa16", 4, 32 * K, quick=True),
    uniform("d64", "mha56 d64", 1, 6 * K),
    uniform("d64", "mha32 d64", 1, 64 * K, quick=True),
    uniform("d64", "mha32 d64", 1, 512 * K),
    uniform("d64", "mha32 d64", 4, 16 * K),
    ragged("ragged", "llama8b", "1x128k+15x2k", ONE_LONG, quick=True),
    ragged("ragged", "llama8b", "lognormal B32", LOGNORMAL),
    ragged("ragged", "llama8b", "zipf B64", ZIPF),
    ragged("ragged", "70b/tp8", "lognormal B32", LOGNORMAL),
    ragged("short", "llama8b", "short B256", short_lengths(256, 511), quick=True),
    ragged("short", "70b/tp8", "short B256", short_lengths(256, 511)),
    ragged("short", "llama8b", "short B64", short_lengths(64, 127)),
    # Batch sizes that no even split of the SMs fits.
    *(uniform("awkward", "llama8b", batch, 8 * K, quick=batch == 17) for batch in (3, 17, 20, 34)),
    *(uniform("awkward", "70b/tp8", batch, 8 * K) for batch in (3, 17, 20, 34)),
    # With those of `uniform`, all powers of two from 1k to 256k.
    *(uniform("context", "llama8b", 1, tokens * K, quick=tokens == 8) for tokens in (2, 8, 32, 256)),
    *(uniform("context", "70b/tp8", 1, tokens * K) for tokens in (1, 2, 4, 8, 16, 32, 128, 256)),
    *(speculative(uniform("spec", "llama8b", 4, 16 * K, quick=q_len == 4), q_len) for q_len in (2, 4, 8)),
    speculative(uniform("spec", "70b/tp8", 3, 8 * K), 5),
    speculative(ragged("spec", "llama8b", "lognormal B32", LOGNORMAL), 4),
)
