"""Final models for use elsewhere, each checked against the original before it has its name."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cifartune.errors import UserError
from cifartune.files import write_atomically

if TYPE_CHECKING:  # torch
    from cifartune.final_models import FinalModel

TOLERANCE = 1e-3
"""How far a probability may be from the original's. What is rounded otherwise is 1e-6 off."""

IMAGES = 200
"""Real images on which a file is checked."""

MOST_BYTES = 2**31 - 1
"""Of an ONNX file, which is a protocol buffer."""

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """What a model can be exported to.

    Attributes:
        suffix: How the names of its files end.
        needs: The packages that it takes, beside those of cifartune.
        write: From a model, and facts about it, to a file's content.
        run: From a file's content and images, uint8 (N, 32, 32, 3), to probabilities.
    """

    suffix: str
    needs: tuple[str, ...]
    write: "Callable[[FinalModel, Mapping[str, Any]], bytes]"
    run: Callable[[bytes, Pixels], Probabilities]


def check_target(kind: str, path: Path, *, force: bool) -> None:
    """Looks for what is in the way before a model is read.

    Raises:
        UserError: A package is missing, or the file is there.
    """
    if missing := [name for name in FORMATS[kind].needs if find_spec(name) is None]:
        raise UserError(
            f"--format {kind}: needs {', '.join(missing)}: pip install 'cifartune[{kind}]'"
        )
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file with --out")
    if path.exists() and not force:
        raise UserError(f"{path}: exists; --force replaces it, --out names another file")


def export_model(
    model: "FinalModel", facts: Mapping[str, Any], kind: str, path: Path, images: Pixels
) -> float:
    """Writes a model to a file, whole or not at all, if it gives the same there.

    Args:
        model: A `FinalModel`, which is left on the CPU.
        facts: What the file says about it, by name; values as JSON has them.
        kind: One of `FORMATS`.
        path: The file. What is there is replaced.
        images: uint8 (N, 32, 32, 3), on which it is checked.

    Returns:
        The largest difference of a probability from the original's.

    Raises:
        UserError: They differ by more than `TOLERANCE`, or the file cannot be written.
    """
    model.cpu()
    content = FORMATS[kind].write(model, facts)
    found = FORMATS[kind].run(content, images)
    difference = float(np.abs(found - model.predict(images)).max())
    if not difference <= TOLERANCE:  # it may be not a number
        raise UserError(
            f"{path}: not written: as {kind}, the model's probabilities differ by {difference:.2g} "
            f"on {len(images)} images, where {TOLERANCE:g} is allowed; take another format"
        )
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return difference


def _to_onnx(model: "FinalModel", facts: Mapping[str, Any]) -> bytes:
    import torch
    from onnx import helper

    from cifartune.final_models import contiguous, example

    arguments, shapes = example()
    program = torch.onnx.export(
        contiguous(model),
        arguments,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["probabilities"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    told = {name: v if isinstance(v, str) else json.dumps(v) for name, v in facts.items()}
    helper.set_model_props(proto, told)
    if proto.ByteSize() > MOST_BYTES:
        raise UserError(
            f"--format onnx: {proto.ByteSize() / 1e9:.1f} GB of weights are more than one file "
            "holds; take one network: --model all_images"
        )
    content: bytes = proto.SerializeToString()
    return content


def _run_onnx(content: bytes, images: Pixels) -> Probabilities:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [probabilities] = session.run(None, {"images": images})
    found: Probabilities = probabilities
    return found


def _to_program(model: "FinalModel", facts: Mapping[str, Any]) -> bytes:
    from cifartune.final_models import program_of

    return program_of(model, {"about.json": json.dumps(facts)})


def _run_program(content: bytes, images: Pixels) -> Probabilities:
    import torch

    program = torch.export.load(io.BytesIO(content)).module()
    with torch.inference_mode():
        found: Probabilities = program(torch.from_numpy(images)).numpy()
    return found


def _to_safetensors(model: "FinalModel", facts: Mapping[str, Any]) -> bytes:
    """The networks' tensors, those of the first as `0.<name>`, and so on."""
    from safetensors.torch import save

    from cifartune.models.weights import RUN_METADATA

    tensors, networks = {}, []
    for number, member in enumerate(model.ensemble.classifiers):
        for name, tensor in member.network.state_dict().items():
            tensors[f"{number}.{name}"] = tensor.contiguous()
        statistics = {"mean": member.mean, "deviation": member.deviation}
        told = {name: tensor.flatten().tolist() for name, tensor in statistics.items()}
        networks.append({"prefix": f"{number}.", **told})
    about = {**facts, **_architecture(model), "networks": networks}
    # By this key a search knows the file, and does not start from it: its folds would be no test.
    return save(tensors, {RUN_METADATA: json.dumps(about)})


def _architecture(model: "FinalModel") -> dict[str, Any]:
    """The recipe; what timm is to make of it, and what is changed of that."""
    from timm.models import ResNet

    from cifartune.models.build import options_of

    recipe = model.recipe.model
    has_cifar_stem = recipe.stem == "cifar" and isinstance(
        model.ensemble.classifiers[0].network, ResNet
    )
    return {
        "recipe": model.recipe.model_dump(),
        "timm": {"model_name": recipe.name, "num_classes": 10, **options_of(recipe)},
        "cifar_stem": has_cifar_stem,
        "activation": recipe.activation,
    }


def read_safetensors(content: bytes) -> "FinalModel":
    """The `FinalModel` of a file that was exported as safetensors, on the CPU."""
    from safetensors.torch import load

    from cifartune.config import Recipe
    from cifartune.final_models import FinalModel
    from cifartune.models.weights import RUN_METADATA
    from cifartune.training.classifier import Ensemble, untrained

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"][RUN_METADATA])
    recipe, tensors = Recipe.model_validate(about["recipe"]), load(content)
    members = []
    for network in about["networks"]:
        prefix = network["prefix"]
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        member = untrained(recipe, network["mean"], network["deviation"])
        member.network.load_state_dict(own)
        members.append(member)
    return FinalModel(Ensemble(members)).eval()


def _run_safetensors(content: bytes, images: Pixels) -> Probabilities:
    found: Probabilities = read_safetensors(content).predict(images)
    return found


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _to_onnx, _run_onnx),
    "safetensors": Format(".safetensors", (), _to_safetensors, _run_safetensors),
    "pt2": Format(".pt2", (), _to_program, _run_program),
}
