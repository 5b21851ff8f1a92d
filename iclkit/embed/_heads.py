"""What stands behind the pooling of a sentence-transformers folder: dense layers, and the cut to fewer dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iclkit.embed._folder import Module
from iclkit.embed._torch import row_products
from iclkit.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DenseHead:
    """``activation(weight @ x + bias)``. ``by_default``: the folder names no activation, and the library's is taken."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: Any
    by_default: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, in) -> (n, out)."""
        bias = None if self.bias is None else self.bias.to(x)
        y: torch.Tensor = self.activation(row_products(x, self.weight.to(x), bias))
        return y


def dense_head(module: Module) -> DenseHead:
    """The dense layer of a module whose files ``read_modules`` has passed. ModelError for a damaged or unknown one."""
    from safetensors.torch import load_file

    given = module.settings
    file = module.path / "model.safetensors"
    weights = load_file(file)
    with_bias = given.get("bias", True)
    wanted = {"linear.weight": 2, **({"linear.bias": 1} if with_bias else {})}
    if lacking := [n for n, dim in wanted.items() if n not in weights or weights[n].ndim != dim]:
        raise ModelError(f"{file} lacks {', '.join(lacking)} of its dense layer; fetch or copy the model again")
    return DenseHead(
        weights["linear.weight"],
        weights["linear.bias"] if with_bias else None,
        _activation(given.get("activation_function"), module),
        "activation_function" not in given,
    )


def first_dimensions(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Keep the first ``count`` dimensions (Matryoshka embeddings, Kusupati et al. 2022)."""

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x[:, :count]

    return cut


def _activation(dotted: Any, module: Module) -> Any:
    import torch

    if dotted is None:
        return torch.nn.Tanh()  # what sentence-transformers takes where nothing is said
    name = str(dotted).rpartition(".")[2]
    kind = getattr(torch.nn, name, None) if str(dotted).startswith("torch.nn.") else None
    try:
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            made: Any = kind()
            return made
    except TypeError:  # a module that is no activation needs arguments
        pass
    raise ModelError(
        f"{module.path / 'config.json'}: activation_function is {dotted!r}; only those of torch.nn are taken, as code "
        "that a model names is never run"
    )
