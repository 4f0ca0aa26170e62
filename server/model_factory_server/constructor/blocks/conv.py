"""Convolution blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from model_factory_server.constructor.blocks.parts.checks import check_count, check_counts, check_flag, check_module
from model_factory_server.constructor.blocks.parts.example_tensors import BATCH, distinct_sizes, example


class ConvBNAct(nn.Module):
    """Convolution, norm and activation.

    Without ``in_channels``, the first input determines the number of channels. Without ``bias``, the convolution has a
    bias if no ``norm`` is given. The default ``norm`` is batch norm, the default ``act`` an in-place ReLU.

    Example:
        >>> import torch
        >>> ConvBNAct(3, 8, kernel_size=3, stride=2, padding=1)(torch.zeros(2, 3, 10, 12)).shape
        torch.Size([2, 8, 5, 6])
    """

    examples_are_guesses = True  # norm and act of the config may accept other inputs only

    def __init__(  # noqa: PLR0913, PLR0917  the config's arguments
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count("out_channels", out_channels)
        check_counts("kernel_size", kernel_size)
        check_counts("stride", stride)
        check_counts("dilation", dilation)
        check_count("groups", groups)
        if not isinstance(padding, str):  # torch checks 'same' and 'valid'
            check_counts("padding", padding, least=0)
        with_bias = norm is None if bias is None else check_flag("bias", bias)
        self.conv: nn.Conv2d
        if in_channels is None:
            self.conv = nn.LazyConv2d(
                out_channels,
                kernel_size,
                stride,
                padding,  # type: ignore[arg-type]  # strings are accepted, too
                dilation,
                groups,
                with_bias,
            )
        else:
            check_count("in_channels", in_channels)
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, with_bias)
        self.norm = nn.BatchNorm2d(out_channels) if norm is None else check_module("norm", norm)
        self.act = nn.ReLU(inplace=True) if act is None else check_module("act", act)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h', w')``; sizes as in ``nn.Conv2d``."""
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with images a little larger than the kernel; empty while ``in_channels`` is unknown."""
        if isinstance(self.conv, LazyModuleMixin):
            return []
        return [{"x": _example_images(self.conv)}]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection ("Deep Residual Learning for Image Recognition", figure 2).

    The skip connection is a 1x1 convolution if the shapes differ, the identity otherwise.

    Example:
        >>> import torch
        >>> ResidualBlock(4, 6, stride=2)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 6, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, stride: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("stride", stride)
        out = in_channels if out_channels is None else check_count("out_channels", out_channels)
        self.main1 = ConvBNAct(in_channels, out, 3, stride=stride, padding=1)
        self.main2 = ConvBNAct(out, out, 3, padding=1, act=nn.Identity())
        self.skip: nn.Module
        if in_channels == out and stride == 1:
            self.skip = nn.Identity()
        else:
            self.skip = ConvBNAct(in_channels, out, 1, stride=stride, act=nn.Identity())
        self.act = nn.ReLU(inplace=True) if act is None else check_module("act", act)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to ``(batch, out_channels, ceil(h/stride), ceil(w/stride))``."""
        return self.act(self.main2(self.main1(x)) + self.skip(x))  # type: ignore[no-any-return]

    def example_inputs(self) -> list[dict[str, object]]:
        """Return a call with a batch of images."""
        return [{"x": _example_images(self.main1.conv)}]


def _example_images(conv: nn.Conv2d) -> Tensor:
    sizes = distinct_sizes(conv.in_channels)
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    height = next(size for size in sizes if size > reach[0])
    width = next(size for size in sizes if size > reach[1])
    return example(BATCH, conv.in_channels, height, width)
