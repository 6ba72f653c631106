"""A network that needs no training."""

import torch


class ByIntensity(torch.nn.Conv2d):
    """Give each pixel the class k whose intensity k / 3 is nearest: logits -(x - c)^2 without their common x^2."""

    def __init__(self) -> None:
        super().__init__(1, 4, kernel_size=1)
        c = torch.arange(4) / 3
        self.load_state_dict({"weight": 200 * c[:, None, None, None], "bias": -100 * c**2})
