"""``FILE.pt2``: a network that ``torch.export.save`` wrote, with its weights.

Its layers are gone, but not its BatchNorm: each is one operation that reads its statistics. These become
BatchNorm layers again, under their old names, so that calibration can move their statistics:

1. ``batch_norm(x, γ, β, μ, σ², …)``, as ``torch.export.export`` leaves it;
2. ``_native_batch_norm_legit_no_training``, as ``run_decompositions`` does, whose second and third result
   nothing may read.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from sad_runtime.errors import UserError

from .reference import Reference

_LAYERS: dict[int, type[BatchNorm]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d
}  # fmt: skip
_EXPORT = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('N')},))"


def from_exported(model: Reference) -> nn.Module:
    """Read it, and give it its BatchNorm layers.

    Raises:
        UserError: The file cannot be read, was exported in training, or for one size of batch; or a BatchNorm
            reads other than stored statistics.
    """
    path = Path(model.name).expanduser()
    program = _read(path)
    (images, *others) = program.graph_signature.user_inputs or (None,)
    module = program.module()
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name == images]
    if others or not shapes:
        raise UserError(f"{path} takes {1 + len(others)} inputs, a classifier takes images alone")
    if isinstance(shapes[0][0], int):
        raise UserError(
            f"{path} was exported for batches of {shapes[0][0]}, and calibration needs others",
            hint=f"export it again: {_EXPORT}",
        )
    assert isinstance(module, GraphModule)
    for node in list(module.graph.nodes):
        if (
            node.op == "call_module" and node.target == "_guards_fn"
        ):  # it checks shapes, which are checked here
            module.graph.erase_node(node)
        elif _operation(node) in ("batch_norm", "_native_batch_norm_legit_no_training"):
            _to_layer(module, node, path)
        elif "batch_norm" in _operation(node):
            raise UserError(
                f"{path} holds {node.target}: it was exported in training, and would not keep its statistics",
                hint=f"export it in eval mode: {_EXPORT}",
            )
    for node in list(module.graph.nodes):
        if (
            node.op == "get_attr" and not node.users
        ):  # what the layers now read themselves, and their counters
            module.graph.erase_node(node)
    module.graph.lint()
    # A plain one: what torch.export gives refuses eval().
    return GraphModule(module, module.graph, class_name=path.stem if path.stem.isidentifier() else "Exported")


def _read(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise UserError(f"--model {path}: no such file", hint="a .pt2 file is what torch.export.save wrote")
    try:
        return torch.export.load(path)
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:160]
        raise UserError(
            f"{path} cannot be read as an exported program: {type(error).__name__}: {said}",
            hint="write it again with torch.export.save, by this PyTorch "
            f"({torch.__version__}) or an older one; a package that was compiled for inference has no layers",
        ) from error


def _operation(node: Node) -> str:
    name = getattr(node.target, "_schema", None)
    return str(name.name).partition("::")[2] if node.op == "call_function" and name is not None else ""


def _to_layer(module: GraphModule, node: Node, path: Path) -> None:
    """Put a layer in the place of an operation."""
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, mean, var, *rest = arguments
    # batch_norm has "training" before momentum and ε.
    native = _operation(node) != "batch_norm"
    training, eps = (False, rest[1]) if native else (rest[0], rest[2])
    if training or not all(isinstance(each, Node) and each.op == "get_attr" for each in (mean, var)):
        raise UserError(
            f"{path}: {node.name} normalises by the batch, not by stored statistics",
            hint=f"export it in eval mode: {_EXPORT}",
        )
    assert isinstance(mean, Node) and isinstance(x, Node)
    name = str(mean.target).rpartition(".")[0] or node.name
    if not isinstance(_found(module, name), BatchNorm):
        tensors = [
            None if each is None else _found(module, each.target) for each in (weight, bias, mean, var)
        ]
        module.add_submodule(name, _layer(x.meta["val"].dim(), float(eps), *tensors))
    with module.graph.inserting_before(node):
        called = module.graph.call_module(name, (x,))
    called.meta = dict(node.meta)
    if native:
        for user in list(node.users):
            if user.target is not operator.getitem or user.args[1] != 0:
                raise UserError(
                    f"{path}: {user.name} reads the statistics that {node.name} saves for training"
                )
            user.replace_all_uses_with(called)
            module.graph.erase_node(user)
    else:
        node.replace_all_uses_with(called)
    module.graph.erase_node(node)


def _found(module: nn.Module, name: Any) -> Any:
    found: Any = module
    for part in str(name).split("."):
        found = getattr(found, part, None)
    return found


def _layer(rank: int, eps: float, *tensors: torch.Tensor | None) -> BatchNorm:
    """BatchNorm of γ, β, μ and σ²; the first two may be None."""
    weight, bias, mean, var = tensors
    assert mean is not None and var is not None  # stored ones: see _to_layer
    affine = weight is not None or bias is not None
    layer = _LAYERS[rank](len(mean), eps=eps, affine=affine)
    with torch.no_grad():
        mine = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        for target, value in zip(mine, (weight, bias, mean, var), strict=True):
            if target is not None and value is not None:
                target.copy_(value)
    return layer.eval()
