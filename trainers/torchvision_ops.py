"""Let `import torchvision` work beside a torch it was not built for.

PyPI's torchvision wheels are CUDA builds. Beside a CPU-only torch their extension does not load, and importing them
dies with "operator torchvision::nms does not exist", which takes timm and torchmetrics down too. Declaring the two
operators that are looked up at import, and only when they are absent, is enough: nothing here calls them.
"""

import importlib
import importlib.util

import torch

_DECLARED: list[torch.library.Library] = []  # the declarations live as long as this list holds them


def declare_missing_ops() -> None:
    """Declare `torchvision::nms` and `qnms` if they are absent. Call before importing timm or torchmetrics."""
    if _DECLARED or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
