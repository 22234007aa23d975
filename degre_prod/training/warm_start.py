"""Training that goes on from weights that are there."""

from __future__ import annotations

import torch
from torch import nn

from degre_prod.errors import MismatchError


def start_from(model: nn.Module, trained: nn.Module) -> None:
    """Copy the parameters of a network of the same shape. Buffers stay: what depends on the data (Ū) is the new data's.

    Raises MismatchError naming the parameters that differ in name or shape.
    """
    own, given = dict(model.named_parameters()), dict(trained.named_parameters())
    strange = sorted(own.keys() ^ given.keys()) or sorted(n for n, p in own.items() if p.shape != given[n].shape)
    if strange:
        raise MismatchError(f"a warm start needs a network of the same shape; these differ: {', '.join(strange[:5])}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])
