"""White-box transformer blocks: one step of an optimisation each (CRATE, Yu et al., NeurIPS 2023; CRATE-MAE, ICLR 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Residual, check_heads, split_heads
from maskwright.core.encoder.positions import rotate


class SubspaceAttention(nn.Module):
    """Multi-head subspace self-attention (MSSA): query, key and value are one projection U x, without a bias.

    As in the released code the heads are put together by a linear layer of their own, where the theory has U transposed.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.subspaces = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        w = split_heads(self.subspaces(x), self.num_heads)
        q = w if angles is None else rotate(w, angles)
        bias = bias if bias is None else bias.to(w.dtype)
        return self.proj(F.scaled_dot_product_attention(q, q, w, attn_mask=bias).transpose(1, 2).flatten(2))


def dictionary(dim: int) -> nn.Parameter:
    """A square matrix (D, D), Kaiming-uniform: bound sqrt(6 / D)."""
    bound = math.sqrt(6 / dim)
    return nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))


class CrateBlock(nn.Module):
    """Compress towards subspaces, then sparsify against a dictionary. Output is non-negative and has exact zeros.

    z = x + MSSA(norm1(x)); with n = norm2(z): ReLU(n + step (D^T n - D^T D n) - step threshold). The second half has no
    skip from z: its base is n itself (ISTA).

    Args:
        dim, num_heads: width D and heads.
        step: of the ISTA step.
        threshold: of its sparsity; 0.5 for masked autoencoding (0.1 for the supervised CRATE).
        drop_path: as in `Residual`; of the attention alone, as ISTA adds nothing to a stream.

    Shapes:
        (B, N, D) to (B, N, D); bias and angles as in `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        step: float = 0.1,
        threshold: float = 0.5,
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SubspaceAttention(dim, num_heads)
        self.residual1 = Residual(dim, drop_path=drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.dictionary = dictionary(dim)
        self.step, self.threshold = step, threshold

    def forward(self, x: Tensor, bias: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        return self.sparsify(self.norm2(x + self.residual1(self.attn(self.norm1(x), bias, angles))))

    def sparsify(self, n: Tensor) -> Tensor:
        """One ISTA step of tokens (B, N, D) as rows: D n is n @ dictionary.T."""
        residual = n - F.linear(n, self.dictionary)  # n - D n
        return F.relu(n + self.step * F.linear(residual, self.dictionary.T) - self.step * self.threshold)


class CrateDecoderBlock(nn.Module):
    """The reverse of `CrateBlock`: g = E norm1(x), then g - MSSA(norm2(g)). (B, N, D) to (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.dictionary = dictionary(dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SubspaceAttention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        g = F.linear(self.norm1(x), self.dictionary)
        return g - self.attn(self.norm2(g))


def coding_rate(projected: Tensor, num_heads: int, eps: float = 0.01) -> Tensor:
    """Bits that head-wise projected tokens need: (B, N, D) to (B,), the mean over a batch is the paper's curve.

    With tokens of unit length as the columns of W (p, m) in each head: 1/2 logdet(I + p / (m eps) W^T W), summed over
    heads. By Sylvester's identity the smaller of W^T W and W W^T is decomposed.
    """
    w = F.normalize(split_heads(projected.float(), num_heads), dim=-1)
    tokens, width = w.shape[-2:]
    gram = w @ w.mT if tokens <= width else w.mT @ w
    eye = torch.eye(gram.shape[-1], device=gram.device)
    return torch.logdet(eye + width / (tokens * eps) * gram).sum(1) / 2


def density(values: Tensor) -> Tensor:
    """Share of entries that are not zero in the output of a `CrateBlock`: (B, N, D) to (B,)."""
    return (values != 0).flatten(1).float().mean(1)
