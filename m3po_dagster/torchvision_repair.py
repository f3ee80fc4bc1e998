"""Makes torchvision importable beside a CPU build of torch.

torchvision's wheel is compiled for CUDA; beside a CPU torch its compiled part can't load and `import torchvision` dies
on two operators it never gets to define. Declaring them lets the import through; nothing here ever calls them. On a
healthy installation nothing happens. Call before the first import of transformers or open_clip.
"""

_KEPT_ALIVE = []


def repair_torchvision() -> None:
    """Declares torchvision's missing operators once a process, if `import torchvision` fails for want of them."""
    import importlib
    import sys

    import torch

    if "torchvision" in sys.modules or _KEPT_ALIVE:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT_ALIVE.append(library)
        importlib.import_module("torchvision")
