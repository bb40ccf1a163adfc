"""Models that libraries give by name, with an example call: timm, torchvision, Ultralytics,
diffusers and segmentation-models-pytorch.

Weights are random unless pretrained ones are asked for; nothing is fetched without that."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, gist, option

__all__ = ["LIBRARIES", "Maker", "library"]

Maker = Callable[[str, bool, bool], tuple[Any, Callable[[], Any]]]
"""From the name behind the colon, ``pretrained`` and ``trust`` to a model and what gives its
example call."""


def library(name: str) -> Any:
    """The module of an optional package. Raises IrpruneError where it is missing or broken."""
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        package = _PACKAGES.get(name.partition(".")[0], name)
        raise IrpruneError(
            f"{name} is not installed", "", f"pip install {package}, or pip install 'irprune[zoo]'"
        ) from missing
    except (
        RuntimeError,
        OSError,
    ) as broken:  # compiled parts that do not fit the torch that is installed
        why = str(broken).splitlines()[0]
        raise IrpruneError(
            f"{name} is not installed for this torch: {why}", "", f"install the {name} that fits"
        ) from broken


_PACKAGES = {"segmentation_models_pytorch": "segmentation-models-pytorch"}


def _near(name: str, known: Iterable[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)) or "none"


def _unknown(where: str, name: str, known: Iterable[str]) -> IrpruneError:
    return IrpruneError(f"{where} has no model {name!r}", "", f"near matches: {_near(name, known)}")


# -- timm and torchvision --------------------------------------------------------------------------


def _timm(name: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    import torch

    timm = library("timm")
    if name not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    model = timm.create_model(name, pretrained=pretrained)
    return model, lambda: torch.randn(1, *model.pretrained_cfg["input_size"])


def _torchvision(name: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    import torch

    library("torchvision")
    models = library("torchvision.models")
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    extra = (
        {} if ".detection" in builder.__module__ else {"weights": "DEFAULT" if pretrained else None}
    )
    if ".segmentation" in builder.__module__ or ".detection" in builder.__module__:
        extra["weights_backbone"] = None
    with _no_init_warnings():
        model = models.get_model(name, **extra)

    def example() -> Any:
        if ".video" in builder.__module__:
            return (
                torch.randn(1, 3, 16, 224, 224)
                if "vit" in name or "swin" in name
                else torch.randn(1, 3, 16, 112, 112)
            )
        if ".optical_flow" in builder.__module__:
            return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
        return (
            torch.randn(1, 3, 299, 299) if name == "inception_v3" else torch.randn(1, 3, 224, 224)
        )

    return model, example


@contextlib.contextmanager
def _no_init_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torchvision announces another initialisation of random weights
        warnings.simplefilter("ignore", FutureWarning)
        yield


# -- Ultralytics -----------------------------------------------------------------------------------


def _ultralytics(name: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    """``yolo11n.yaml``: a fresh model of that architecture; a ``.pt`` file is pickled."""
    import torch

    package = library("ultralytics")
    if name.endswith(".pt"):
        if not trust:
            raise IrpruneError(
                "the file is pickled and may run code", name, f"say {option('trust', 'True')}"
            )
        if not Path(name).exists():
            raise IrpruneError("no such file", name, "Ultralytics fetches its weights by itself")
    elif not Path(name).exists() and not _is_yolo(package, name):
        raise _unknown("ultralytics", name, _yolo_names(package))
    elif pretrained:
        raise IrpruneError(
            "a .yaml names an architecture without weights",
            name,
            f"give the file of its weights: ultralytics:{Path(name).stem}.pt --trust",
        )
    model = package.YOLO(name).model
    model.float().eval()
    task = str(getattr(model, "task", package.nn.tasks.guess_model_task(model)))
    side = 224 if task == "classify" else 640
    channels = int(model.yaml.get("channels", model.yaml.get("ch", 3)))
    return model, lambda: torch.rand(1, channels, side, side)


def _yolo_names(package: Any) -> list[str]:
    """The architectures that the package brings, each in every size."""
    folder = Path(package.__file__).parent / "cfg" / "models"
    names = []
    for path in sorted(folder.rglob("yolo*.yaml")):
        version, dash, rest = path.stem.partition("-")
        names += [f"{version}{size}{dash}{rest}.yaml" for size in ("", *"tnsmlbxce")]
    return names


def _is_yolo(package: Any, name: str) -> bool:
    return name in _yolo_names(package)


# -- segmentation-models-pytorch -------------------------------------------------------------------


def _segmentation(name: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    """``Unet`` on a ResNet-34, or on the encoder behind the slash: ``Unet/mobilenet_v2``."""
    import torch

    package = library("segmentation_models_pytorch")
    shape, _, encoder = name.partition("/")
    known = package.MODEL_ARCHITECTURES_MAPPING
    if shape.lower() not in known:
        raise _unknown("segmentation-models-pytorch", shape, known)
    encoder = encoder or ("tu-vit_base_patch16_224" if shape.lower() == "dpt" else "resnet34")
    if not encoder.startswith("tu-") and encoder not in package.encoders.get_encoder_names():
        raise _unknown("segmentation-models-pytorch", encoder, package.encoders.get_encoder_names())
    model = package.create_model(
        shape.lower(), encoder_name=encoder, encoder_weights="imagenet" if pretrained else None
    )
    side = 224 if shape.lower() == "dpt" else 256
    return model, lambda: torch.randn(1, 3, side, side)


# -- diffusers -------------------------------------------------------------------------------------


def _diffusers(name: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    """``UNet2DModel``: the class in its default configuration; or a folder with ``config.json``."""
    from irprune.frontend.torch.stored_model import check_weight_files, check_weights

    package = library("diffusers")
    folder = Path(name)
    if (folder / "config.json").exists():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as broken:
            raise IrpruneError(
                f"config.json cannot be read: {gist(broken)}", name, "save the model again"
            ) from broken
        kind = _diffusers_class(package, str(config.get("_class_name", "")))
        check_weight_files(folder, (".safetensors",))
        with quiet():
            model, found = kind.from_pretrained(
                name, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        check_weights(found, folder)
    else:
        model = _diffusers_class(package, name)()
    return model, lambda: _diffusers_call(model)


def _diffusers_class(package: Any, name: str) -> Any:
    kind = getattr(package, name, None) if name in dir(package) else None
    if not isinstance(kind, type) or not issubclass(kind, package.ModelMixin):
        raise _unknown("diffusers", name, [n for n in dir(package) if n.endswith(("Model", "KL"))])
    return kind


def _diffusers_call(model: Any) -> dict[str, Any]:
    """Keyword arguments that fit the parameters of forward, by their names and the config."""
    import torch

    config = model.config

    def of(*names: str, default: int) -> int:
        found = next((config[n] for n in names if config.get(n) is not None), default)
        return int(found[0] if isinstance(found, (list, tuple)) else found)

    side = of("sample_size", default=32)
    channels = of("in_channels", default=4)
    width = of("joint_attention_dim", "cross_attention_dim", "caption_channels", default=768)
    image = torch.randn(1, channels, side, side)
    packed = "img_ids" in inspect.signature(model.forward).parameters  # patches in a row
    makers: dict[str, Callable[[], Any]] = {
        "sample": lambda: image,
        "hidden_states": lambda: torch.randn(1, 64, channels) if packed else image,
        "timestep": lambda: torch.tensor([1.0 if packed else 1]),
        "encoder_hidden_states": lambda: torch.randn(1, 77, width),
        "pooled_projections": lambda: torch.randn(1, of("pooled_projection_dim", default=768)),
        "img_ids": lambda: torch.zeros(64, 3),
        "txt_ids": lambda: torch.zeros(77, 3),
    }
    if config.get("num_embeds_ada_norm") is not None and "caption_channels" not in config:
        makers["class_labels"] = lambda: torch.tensor([1])
    if config.get("guidance_embeds"):
        makers["guidance"] = lambda: torch.tensor([3.5])
    if config.get("addition_embed_type") == "text_time":
        times = of("addition_time_embed_dim", default=256)
        text = of("projection_class_embeddings_input_dim", default=2816) - 6 * times
        makers["added_cond_kwargs"] = lambda: {
            "text_embeds": torch.randn(1, text),
            "time_ids": torch.zeros(1, 6),
        }
    taken = inspect.signature(model.forward).parameters
    lacking = [
        n
        for n, p in taken.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n not in makers
    ]
    if lacking:
        raise IrpruneError(
            f"no example for {', '.join(lacking)}", type(model).__name__, "give --input"
        )
    call = {name: make() for name, make in makers.items() if name in taken}
    return {**call, "return_dict": False} if "return_dict" in taken else call


LIBRARIES: dict[str, Maker] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "ultralytics": _ultralytics,
    "diffusers": _diffusers,
    "smp": _segmentation,
}
