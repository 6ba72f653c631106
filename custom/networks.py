"""Networks of the CrossMatch paper behind one small contract.

The "encoders" and "decoders" of the paper are views of one network with shared weights: the encoder sees an image once,
the decoder sees its features clean and under channel dropout. :class:`PerturbedNetwork` holds that contract, a backbone
supplies ``encode`` and ``decode``.

V-Net: Milletari et al., 3DV 2016, doi:10.1109/3DV.2016.79, in the batch-norm variant that the semi-supervised
literature has used since UA-MT (Yu et al., MICCAI 2019, doi:10.1007/978-3-030-32245-8_67). U-Net: Ronneberger et al.,
MICCAI 2015, doi:10.1007/978-3-319-24574-4_28, in the variant that the same literature has used on ACDC since SSL4MIS
(github.com/HiLab-git/SSL4MIS). SegResNet, a stock network of MONAI, shows how any other backbone is brought in.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import SegResNet
from torch import nn
from torch.nn.functional import conv_transpose3d, linear

from .perturbations import FeatureDropout
from .utils.errors import UserError


class PerturbedNetwork(nn.Module):
    """Encoder-decoder that can also decode perturbed features. Backbones override ``encode`` and ``decode``.

    Args:
        feature_dropout: probability in [0, 1) with which a feature channel is dropped, one entry per
            perturbed decoding, from weak to strong. The paper uses (0.25, 0.75).
    """

    def __init__(self, feature_dropout: Sequence[float] = (0.25, 0.75)) -> None:
        super().__init__()
        self.feature_dropout = nn.ModuleList(FeatureDropout(probability) for probability in feature_dropout)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Turn an image, BCH[WD], into feature maps, one per resolution, finest first."""
        raise NotImplementedError(f"{type(self).__name__} must implement encode().")

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Turn the feature maps of :meth:`encode` into logits, BNH[WD]."""
        raise NotImplementedError(f"{type(self).__name__} must implement decode().")

    def forward(self, image: torch.Tensor, num_perturbed: int = 0) -> torch.Tensor:
        """Segment a batch; decode the last ``num_perturbed`` images once more per feature dropout.

        All decodings run as one batch, so that batch-norm statistics cover clean and perturbed features alike.

        Args:
            image: BCH[WD].
            num_perturbed: number of images, counted from the end of the batch, whose features are perturbed.

        Returns:
            Logits, (B + K * num_perturbed)NH[WD] with K entries in ``feature_dropout``: first the clean ones of the
            whole batch, then the perturbed ones, weakest dropout first.
        """
        clean = self.encode(image)
        if num_perturbed == 0:
            return self.decode(clean)
        # Split rather than sliced: the backward pass of a slice fills a map of the whole batch with zeros.
        parts = [level.split([len(image) - num_perturbed, num_perturbed]) for level in clean]
        last = [part[1] for part in parts]
        versions = [[part[0] for part in parts], last]
        for dropout in self.feature_dropout:
            versions.append(dropout(last))
        return self.decode([torch.cat([version[i] for version in versions]) for i in range(len(clean))])


class MeanEnsemble(nn.Module):
    """Average the probabilities of several networks, such as those of a cross-validation, window by window.

    MONAI's ``MeanEnsemble`` averages predictions that are whole, of which one for each network would have to be kept.

    Args:
        members: networks of one kind.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: torch.Tensor, num_perturbed: int = 0) -> torch.Tensor:
        """Segment a batch, BCH[WD].

        Returns:
            Logits, BNH[WD], whose softmax is the mean of the members'. With ``num_perturbed``, those of the last images
            follow as each member alone decodes them, and then its perturbed decodings: all that may disagree.
        """
        if num_perturbed == 0:
            return _log_mean([member(image) for member in self.members])
        decodings = [member(image, num_perturbed=num_perturbed).float() for member in self.members]
        clean = [decoding[: len(image)] for decoding in decodings]
        alone = [decoding[len(image) - num_perturbed :] for decoding in decodings]
        return torch.cat([_log_mean(clean), *alone])


def _log_mean(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    mean = torch.stack([values.float().softmax(1) for values in logits]).mean(0)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


class VNet(PerturbedNetwork):
    """V-Net with batch norm, additive skips and dropout on the bottleneck; 9.45 M parameters at the default width.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes N, background included.
        base_filters: channels at full resolution; doubled at each of the four down-samplings.
        dropout: probability in [0, 1) of dropping a bottleneck channel in training; or five, one per resolution, finest
            first.
        feature_dropout: see :class:`PerturbedNetwork`.

    Raises:
        UserError: when ``dropout`` is something else.
    """

    #: Spatial sizes must be multiples of this: four down-samplings by two.
    divisor = 16
    _convolutions = (1, 2, 3, 3, 3)  # per resolution, Milletari et al., figure 2

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        base_filters: int = 16,
        dropout: float | Sequence[float] = 0.5,
        feature_dropout: Sequence[float] = (0.25, 0.75),
    ) -> None:
        super().__init__(feature_dropout)
        widths = [base_filters * 2**level for level in range(5)]
        depths = self._convolutions
        inputs = [in_channels, *widths[1:]]
        self.encoder = nn.ModuleList(_stage(inputs[i], widths[i], depths[i]) for i in range(5))
        self.down = nn.ModuleList(_block(nn.Conv3d(widths[i], widths[i + 1], 2, stride=2)) for i in range(4))
        self.up = nn.ModuleList(_block(DoublingConvolution(widths[i + 1], widths[i])) for i in reversed(range(4)))
        self.decoder = nn.ModuleList(_stage(widths[i], widths[i], depths[i]) for i in reversed(range(4)))
        rates = [0.0, 0.0, 0.0, 0.0, dropout] if isinstance(dropout, (int, float)) else dropout
        self.dropout = nn.ModuleList(nn.Dropout3d(rate) for rate in _per_level(rates, 5))
        self.head = nn.Conv3d(widths[0], out_channels, kernel_size=1)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Turn an image, BCHWD with H, W, D multiples of 16, into five feature maps, finest first.

        Raises:
            UserError: when a spatial size is not a multiple of 16.
        """
        if not torch.jit.is_scripting():
            _check_sizes(image.shape[2:], self.divisor)
        x = image
        features: list[torch.Tensor] = []
        # The bottleneck stage has no `down`; TorchScript's zip takes no keyword.
        for stage, dropout, down in zip(self.encoder, self.dropout, self.down):  # noqa: B905
            x = dropout(stage(x))
            features.append(x)
            x = down(x)
        features.append(self.dropout[4](self.encoder[4](x)))
        return features

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Turn five feature maps into logits, BNHWD."""
        x = features[-1]
        level = len(features) - 2
        for up, stage in zip(self.up, self.decoder):  # noqa: B905 - TorchScript's zip takes no keyword
            x = stage(up(x) + features[level])
            level -= 1
        return self.head(x)


class DoublingConvolution(nn.ConvTranspose3d):
    """Transposed convolution of kernel 2 and stride 2, BCHWD, trained twice as fast on a CPU as PyTorch's own.

    Its windows do not overlap, so that it is a matrix product whose result is put in order. That is how it is computed
    where gradients are wanted and channels lie last in memory.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    # Unlike PyTorch's, it cannot be asked for the size of its output. (TorchScript wants nothing behind the `ignore`.)
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Double every spatial size."""
        channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
        bias = self.bias
        if bias is None or not (torch.is_grad_enabled() and channels_last and x.device.type == "cpu"):
            return conv_transpose3d(x, self.weight, bias, self.stride)
        b, _, h, w, d = x.shape
        out_channels = self.weight.shape[1]
        weight = self.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
        windows = linear(x.permute(0, 2, 3, 4, 1), weight, bias.repeat(8))
        windows = windows.view(b, h, w, d, 2, 2, 2, out_channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return windows.reshape(b, 2 * h, 2 * w, 2 * d, out_channels).permute(0, 4, 1, 2, 3)


class UNet(PerturbedNetwork):
    """2D U-Net with batch norm and LeakyReLU; 1.81 M parameters at the default width.

    Up-sampling is a 1x1 convolution followed by bilinear interpolation, corners aligned.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes N, background included.
        base_filters: channels at full resolution; doubled at each of the four down-samplings.
        dropout: probability in [0, 1) of dropping an activation in training, one for all resolutions or five, finest
            first.
        feature_dropout: see :class:`PerturbedNetwork`.

    Raises:
        UserError: when ``dropout`` is something else.
    """

    #: Spatial sizes must be multiples of this: four down-samplings by two.
    divisor = 16

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 4,
        base_filters: int = 16,
        dropout: float | Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        feature_dropout: Sequence[float] = (0.25, 0.75),
    ) -> None:
        super().__init__(feature_dropout)
        rates = _per_level(dropout, 5)
        widths = [base_filters * 2**level for level in range(5)]
        inputs = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(_double_convolution(inputs[i], widths[i], rates[i]) for i in range(5))
        self.down = nn.MaxPool2d(2)
        self.reduce = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in reversed(range(4)))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.decoder = nn.ModuleList(_double_convolution(2 * widths[i], widths[i], 0.0) for i in reversed(range(4)))
        self.head = nn.Conv2d(widths[0], out_channels, kernel_size=3, padding=1)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Turn an image, BCHW with H and W multiples of 16, into five feature maps, finest first.

        Raises:
            UserError: when a spatial size is not a multiple of 16.
        """
        if not torch.jit.is_scripting():
            _check_sizes(image.shape[2:], self.divisor)
        features: list[torch.Tensor] = []
        for stage in self.encoder:
            features.append(stage(image if len(features) == 0 else self.down(features[-1])))
        return features

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Turn five feature maps into logits, BNHW."""
        x = features[-1]
        level = len(features) - 2
        for reduce, stage in zip(self.reduce, self.decoder):  # noqa: B905 - TorchScript's zip takes no keyword
            x = stage(torch.cat([features[level], self.up(reduce(x))], dim=1))
            level -= 1
        return self.head(x)


class PerturbedSegResNet(PerturbedNetwork):
    """MONAI's ``SegResNet`` (Myronenko, BrainLes 2018, doi:10.1007/978-3-030-11726-9_28) as a CrossMatch network.

    Args:
        spatial_dims: 2 or 3.
        base_filters: channels at full resolution.
        dropout: probability in [0, 1) of dropping an activation of a feature map in training, one for all resolutions
            or one for each, finest first.
        feature_dropout: see :class:`PerturbedNetwork`.
        kwargs: other arguments, see :class:`monai.networks.nets.SegResNet`.

    Raises:
        UserError: when ``dropout`` is something else, or ``SegResNet`` cannot be made, such as with a width that its
            normalization does not divide.
    """

    def __init__(
        self,
        spatial_dims: int,
        base_filters: int = 8,
        dropout: float | Sequence[float] = 0.0,
        feature_dropout: Sequence[float] = (0.25, 0.75),
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_dropout)
        try:
            self.backbone = SegResNet(spatial_dims=spatial_dims, init_filters=base_filters, **kwargs)
        except ValueError as error:
            raise UserError(
                f"network_def: SegResNet cannot be made with base_filters {base_filters} ({error}); its group norm "
                "needs multiples of 8."
            ) from error
        levels = len(self.backbone.blocks_down)
        #: Spatial sizes must be multiples of this: a down-sampling by two between levels.
        self.divisor = 2 ** (levels - 1)
        self.dropout = nn.ModuleList(nn.Dropout(rate) for rate in _per_level(dropout, levels))

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Turn an image, BCH[WD], into a feature map per resolution (four by default), finest first.

        Raises:
            UserError: when a spatial size cannot be halved as often.
        """
        if not torch.jit.is_scripting():
            _check_sizes(image.shape[2:], self.divisor)
        features = self.backbone.encode(image)[1]
        for level, dropout in enumerate(self.dropout):
            features[level] = dropout(features[level])
        return features

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Turn the feature maps into logits, BNH[WD]."""
        coarse_to_fine = features[::-1]
        return self.backbone.decode(coarse_to_fine[0], coarse_to_fine)


def _per_level(dropout: float | Sequence[float], levels: int) -> list[float]:
    """Give every level its dropout."""
    rates = [float(dropout)] * levels if isinstance(dropout, (int, float)) else [float(rate) for rate in dropout]
    if len(rates) != levels or not all(0 <= rate < 1 for rate in rates):
        raise UserError(
            f"dropout must be a number in [0, 1), or a list of {levels}, one per resolution, got {dropout}."
        )
    return rates


def _double_convolution(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Two blocks of 3x3 convolution, batch norm and LeakyReLU, with dropout between them."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(inplace=True)]
    return nn.Sequential(*layers[:3], nn.Dropout(dropout), *layers[3:])


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """Stack ``depth`` blocks of 3x3x3 convolution, batch norm and ReLU."""
    inputs = [in_channels, *[out_channels] * (depth - 1)]
    blocks = [_block(nn.Conv3d(channels, out_channels, 3, padding=1)) for channels in inputs]
    return nn.Sequential(*(layer for block in blocks for layer in block))


def _block(convolution: nn.Conv3d | nn.ConvTranspose3d) -> nn.Sequential:
    """Follow a convolution with batch norm and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm3d(convolution.out_channels), nn.ReLU(inplace=True))


def _check_sizes(sizes: Sequence[int], divisor: int) -> None:
    if any(size % divisor for size in sizes):
        raise UserError(
            f"every spatial size must be a multiple of {divisor}, got {tuple(sizes)}; choose such a patch_size."
        )
