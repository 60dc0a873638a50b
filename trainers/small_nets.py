"""Small classical CNNs for small images (28 to 64 pixels), registered with timm and built by name like any other.

timm's own networks shrink an image 32-fold, which leaves one cell of a 28-pixel one. These shrink it 8-fold, in three
stages after a stem at full resolution, and train on two CPU cores in minutes. Any two make a pair: residual blocks (He
et al. 2016), plain convolutions with parallel branches (Ding et al. 2021), or, at about 1.5 times the time, bottlenecks
with grouped convolutions and squeeze-and-excitation (Radosavovic et al. 2020).
"""

from typing import Any

from trainers.torchvision_ops import declare_missing_ops

declare_missing_ops()

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402  (after the operators timm looks up exist)
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg  # noqa: E402

STEM_CHANNELS = 16  # few, because it works on every pixel
SMALL_RESNET = ByoModelCfg(
    blocks=tuple(
        ByoBlockCfg(type="basic", d=1, c=channels, s=stride, gs=0, br=1.0)
        for channels, stride in ((24, 2), (48, 2), (96, 2))
    ),
    stem_chs=STEM_CHANNELS,
    stem_type="3x3",
    stem_pool="",
    act_layer="relu",
)
SMALL_REPVGG = ByoModelCfg(
    blocks=tuple(
        ByoBlockCfg(type="rep", d=depth, c=channels, s=stride, gs=0, br=1.0)
        for depth, channels, stride in ((1, 24, 2), (1, 48, 2), (2, 96, 2))
    ),
    stem_chs=STEM_CHANNELS,
    stem_type="3x3",
    stem_pool="",
    act_layer="relu",
)
SMALL_REGNET = ByoModelCfg(
    blocks=tuple(
        ByoBlockCfg(type="bottle", d=depth, c=channels, s=stride, gs=16, br=1.0)
        for depth, channels, stride in ((1, 32, 2), (1, 64, 2), (2, 128, 2))
    ),
    stem_chs=STEM_CHANNELS,
    stem_type="3x3",
    stem_pool="",
    act_layer="relu",
    attn_layer="se",
    attn_kwargs={"rd_ratio": 0.25},
)
SMALL_NETS = {"small_resnet": SMALL_RESNET, "small_repvgg": SMALL_REPVGG, "small_regnet": SMALL_REGNET}


default_cfgs = generate_default_cfgs(  # the name under which timm's registry looks for it in this module
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 32, 32),
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        }
        for name in SMALL_NETS
    }
)


class SmallNet(ByobNet):
    """A ByobNet whose stem keeps the resolution, which timm's stems halve."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stem.conv.stride = (1, 1)
        for stage in self.feature_info:
            stage["reduction"] //= 2


def _build(name: str, pretrained: bool, **options: Any) -> SmallNet:
    return build_model_with_cfg(
        SmallNet, name, pretrained, model_cfg=SMALL_NETS[name], feature_cfg={"flatten_sequential": True}, **options
    )


@register_model
def small_resnet(pretrained: bool = False, **options: Any) -> SmallNet:
    """Three stages of a basic residual block each, 24 to 96 channels."""
    return _build("small_resnet", pretrained, **options)


@register_model
def small_repvgg(pretrained: bool = False, **options: Any) -> SmallNet:
    """Three stages of plain convolutions with 1x1 and identity branches beside them, 24 to 96 channels."""
    return _build("small_repvgg", pretrained, **options)


@register_model
def small_regnet(pretrained: bool = False, **options: Any) -> SmallNet:
    """Three stages of grouped bottlenecks with squeeze-and-excitation, 32 to 128 channels."""
    return _build("small_regnet", pretrained, **options)
