"""The options that choose nothing, each declared once; see ``irprune.api.declarations``."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

from irprune.api.option import Flag, Option
from irprune.api.option_kinds import (
    FP16,
    INT8,
    is_bool,
    is_bytes,
    is_number,
    is_numbers,
    is_text,
    is_texts,
    is_whole,
    or_none,
    read_numbers,
    read_pixels,
    read_repair,
    read_resize,
    settle_calibration,
    settle_memory,
    settle_repair,
)
from irprune.passes.repairs import repairs

__all__ = ["ReplayOptions"]

DEVICES = ("auto", "cpu", "cuda")


class ReplayOptions(TypedDict, total=False):
    """The options that choose nothing: all that ``apply_plan`` takes."""

    proof: Annotated[
        bool | str,
        Option(
            True,
            'False leaves the proof out, "gradients" proves the gradients of a module as well.',
            "Those are part of the proof where they take no more than about a second.",
            fits=lambda x: is_bool(x) or x == "gradients",
            takes='True, False or "gradients"',
            flags=(
                Flag("--no-proof", constant=False, help="Leave the proof out."),
                Flag(
                    "--proof-gradients",
                    constant="gradients",
                    help="Prove the gradients of a module as well, however long that takes.",
                ),
            ),
        ),
    ]
    strict: Annotated[
        bool,
        Option(
            False,
            "Refuse a model with an operator that no rule covers.",
            fits=is_bool,
            takes="True or False",
            flags=(Flag("--strict", constant=True),),
        ),
    ]
    device: Annotated[
        str,
        Option(
            "auto",
            "Where the proof, the comparison and the timing run; auto takes CUDA where there is a "
            "GPU.",
            '"auto", "cpu", "cuda", or one GPU as "cuda:1".',
            fits=lambda x: isinstance(x, str) and (x in DEVICES or x.startswith("cuda:")),
            takes=f"one of {', '.join(DEVICES)}, or cuda:0, cuda:1, ...",
            flags=(Flag("--device", DEVICES),),
        ),
    ]
    dynamic: Annotated[
        str,
        Option(
            "all",
            "Which sizes of the inputs of a torch model stay open in what comes out.",
            'All of them, unless forward fixes them; "batch", "none", or dimensions by the name of '
            'the input, "x:0,2".',
            fits=is_text,
            takes="none, batch, all, or dimensions of inputs as 'x:0,2'",
            flags=(Flag("--dynamic", metavar="SIZES"),),
        ),
    ]
    dynamic_shapes: Annotated[
        Any, Option(None, "As in ``torch.export.export``, in place of ``dynamic``.")
    ]
    trust: Annotated[
        bool,
        Option(
            False,
            "Load a file even where that may run code which lies in it (docs/security.md).",
            fits=is_bool,
            takes="True or False",
        ),
    ]
    ranks: Annotated[
        int | None,
        Option(
            None,
            "How many ranks of an initialised process group work together, each on its share of the "
            "calibration data; 1 is this process alone.",
            "All of them must make the same call; the result is the same on any number.",
            otherwise="as many as there are",
            fits=or_none(lambda x: is_whole(x) and x >= 1),
            takes="a whole number from 1 on",
            flags=(
                Flag(
                    "--ranks",
                    int,
                    metavar="N",
                    help="Refuse another number of ranks than N (torchrun starts them).",
                ),
            ),
        ),
    ]
    memory: Annotated[
        int | str | None,
        Option(
            None,
            "Bytes of memory for weights, activations and sums over them, as in 8GB: a folder of "
            "transformers that takes more is read weight by weight, activations wait on the disk.",
            "One layer at a time is held in any case, with the matrices that its repair solves.",
            otherwise="1 GiB",
            fits=or_none(is_bytes),
            takes="a number of bytes, or a text such as 8GB or 512MB",
            settle=settle_memory,
            flags=(Flag("--memory", metavar="BYTES"),),
        ),
    ]
    bench: Annotated[
        bool,
        Option(
            False,
            "Time each ONNX file that is written beside the original on onnxruntime, for a second.",
            "A warning says where it is not faster, or where the machine is too noisy to tell. The "
            "command line does so by default.",
            fits=is_bool,
            takes="True or False",
            flags=(
                Flag(
                    "--no-bench",
                    constant=False,
                    help="Do not time an ONNX file that is written beside the original.",
                ),
            ),
        ),
    ]
    quantize: Annotated[
        str | None,
        Option(
            None,
            'Numbers of each ONNX file that is written: "int8" by onnxruntime\'s static quantisation '
            'on the calibration data, or "fp16".',
            "The proof is of the model before; the report says how well the file agrees with it.",
            fits=lambda x: x in (None, INT8, FP16),
            takes='"int8" or "fp16"',
            flags=(
                Flag(
                    "--quantize",
                    (INT8, FP16),
                    help="Numbers of the ONNX file that is written: int8 by onnxruntime's static "
                    "quantisation on the calibration data, or 16-bit floats.",
                ),
                Flag("--fp16", constant=FP16, help="The same as --quantize fp16."),
            ),
        ),
    ]
    preprocess: Annotated[
        str | Callable[[Any], Any] | None,
        Option(
            None,
            "What becomes of the images of a calibration folder: imagenet, timm:NAME, hf:FOLDER or "
            "file.py:function.",
            "Or a function from a PIL image to a tensor. Without it, and without mean, std, resize, "
            "crop or pixels, images are refused unless the model's first layers say what they take.",
            fits=or_none(lambda x: is_text(x) or callable(x)),
            takes="a text such as imagenet, or a function of a PIL image",
            flags=(Flag("--preprocess", metavar="NAME"),),
        ),
    ]
    mean: Annotated[
        float | Sequence[float] | None,
        Option(
            None,
            "Subtracted from the pixels of images, one number or one for each channel.",
            fits=or_none(is_numbers),
            takes="numbers, one for each channel",
            flags=(Flag("--mean", metavar="NUMBERS", read=read_numbers),),
        ),
    ]
    std: Annotated[
        float | Sequence[float] | None,
        Option(
            None,
            "What the pixels of images are divided by after that.",
            fits=or_none(is_numbers),
            takes="numbers, one for each channel",
            flags=(Flag("--std", metavar="NUMBERS", read=read_numbers),),
        ),
    ]
    resize: Annotated[
        int | tuple[int, int] | None,
        Option(
            None,
            "Shorter side, or height and width, that images get before what the model sees is cut "
            "out of their middle.",
            otherwise="the size that the model takes",
            fits=or_none(lambda x: is_whole(x) or is_numbers(x)),
            takes="a whole number, or two",
            flags=(Flag("--resize", metavar="SIZE", read=read_resize),),
        ),
    ]
    crop: Annotated[
        float | None,
        Option(
            None,
            "Instead of resize: the share of the resized image that the model sees, as in 0.875.",
            fits=or_none(lambda x: is_number(x) and 0 < x <= 1),
            takes="a number above 0 and up to 1",
            flags=(Flag("--crop", float),),
        ),
    ]
    pixels: Annotated[
        tuple[float, float] | None,
        Option(
            None,
            "What black and white become before mean and std, as in (0, 1) or (-1, 1).",
            otherwise="0 and 1",
            fits=or_none(lambda x: is_numbers(x) and not is_number(x) and len(x) == 2),
            takes="two numbers",
            flags=(Flag("--pixels", metavar="LOW..HIGH", read=read_pixels),),
        ),
    ]
    calibration: Annotated[
        Any,
        Option(
            None,
            "A few hundred inputs for criteria and repairs that read data.",
            "An iterable, a tensor, or a folder of .npy, .npz or image files, or of texts for a "
            "language model "
            '(``irprune.run.calibration``). "synthetic" makes inputs from what the model has '
            "stored (``irprune.run.synthetic``); False goes without.",
            otherwise="synthetic for a model with trained batch norms where no criterion is named",
            settle=settle_calibration,
            to="score",
            flags=(
                Flag(
                    "--calibration",
                    metavar="FOLDER|synthetic",
                    help="Folder of .npy, .npz or image files, or texts for a language model: data "
                    "for criteria and repairs that read it; synthetic makes inputs from what the "
                    "model has stored.",
                ),
                Flag(
                    "--no-calibration",
                    constant=False,
                    help="Go without data, also where inputs could be made.",
                ),
            ),
        ),
    ]
    repair: Annotated[
        str | bool | Sequence[str] | None,
        Option(
            None,
            "Refit what is left to the original, after the proof: "
            f"{', '.join(repairs())}, or several.",
            "On ``calibration``, or on noise where there is none (``irprune.api.repair``). True is "
            "least_squares, False none.",
            otherwise="least_squares with calibration data, else none",
            fits=or_none(lambda x: is_bool(x) or is_texts(x)),
            takes='names of repairs, as in ["least_squares"]',
            settle=settle_repair,
            flags=(
                Flag(
                    "--repair",
                    metavar="METHOD",
                    multiple=True,
                    read=read_repair,
                    help="Refit what is left to the original, after the proof: "
                    f"{', '.join(repairs())} or none.",
                ),
            ),
        ),
    ]
