"""DistilBERT: a transformer on token ids."""

from __future__ import annotations

from torch import Tensor, nn

from miriam.zoo.models.attention import attention

__all__ = ["VOCABULARY", "distilbert"]

VOCABULARY = 30522
"""Token ids are below this."""


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = self.norm1(x + self.out(attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]


class _DistilBert(nn.Module):
    def __init__(self, width: int = 768, depth: int = 6, heads: int = 12, longest: int = 512) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(depth)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.word(tokens) + self.place.weight[: tokens.shape[1]]
        return self.blocks(self.norm(x))  # type: ignore[no-any-return]


def distilbert() -> nn.Module:
    """DistilBERT, uncased base, on sequences without padding; gives the last states (Sanh et al., arXiv 1910.01108)."""
    return _DistilBert()
