"""A network that needs more memory than any machine has for more windows than it is allowed."""

from __future__ import annotations

import torch
from torch import nn


class Hungry(nn.Module):
    """Two logits, B2H[WD], from the sign of the image.

    Args:
        most: windows that fit into memory.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take a batch of windows, B1H[WD]."""
        if len(x) > self.most:
            torch.empty(2**55, dtype=torch.uint8)  # 32 PB: more than can be addressed
        return torch.cat([-x, x], dim=1) * self.scale
