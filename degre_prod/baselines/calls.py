"""The price of asking the evaluator. One call = one (prefix, next item) value by one network.

Each member of an ensemble has networks of its own, so it costs as many evaluators. Values from a cached prefix state count
like any other, values to go count once more, candidates that are masked afterwards count too: they were computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from degre_prod.models.evaluator import Beams, LookaheadEvaluator, Prepared
from degre_prod.models.fields import Batch


@dataclass
class Calls:
    """How many calls were made so far; passed around by whoever asks."""

    count: int = 0

    def add(self, count: int) -> None:
        """Note `count` more."""
        self.count += count


class CountingEvaluator(LookaheadEvaluator):
    """The same evaluator, in evaluation mode, noting every value it gives."""

    def __init__(self, model: LookaheadEvaluator, calls: Calls) -> None:
        super().__init__(model.spec, pessimism=model.pessimism)
        self.load_state_dict(model.state_dict())
        self.requires_grad_(False)
        self.eval()
        self._calls = calls

    def utilities(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """As the evaluator's own; B · L calls a member."""
        self._note(lists_BL.numel())
        return super().utilities(batch, lists_BL)

    def to_go(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """As the evaluator's own; B · L calls a member."""
        self._note(lists_BL.numel())
        return super().to_go(batch, lists_BL)

    def expand(self, prepared: Prepared, beams: Beams, *, to_go: bool) -> tuple[Tensor, Tensor | None]:
        """As the evaluator's own; B · K · C calls a member, twice as many where the value to go is asked as well."""
        U, score = super().expand(prepared, beams, to_go=to_go)
        last = beams.length + 1 >= self.spec.layout.list_length
        self._note(U.numel() * (2 if to_go and not last else 1))
        return U, score

    def advance(self, prepared: Prepared, beams: Beams, parent_BK: Tensor, item_BK: Tensor) -> Beams:
        """As the evaluator's own; B · K calls a member, for the chosen children's values are computed again."""
        self._note(item_BK.numel())
        return super().advance(prepared, beams, parent_BK, item_BK)

    def completed(self, prepared: Prepared, beams: Beams, rest_BX: Tensor, items_BK: Tensor) -> Tensor:
        """As the evaluator's own; B · K · X calls a member."""
        self._note(items_BK.numel() * rest_BX.shape[1])
        return super().completed(prepared, beams, rest_BX, items_BK)

    def _note(self, values: int) -> None:
        self._calls.add(values * self.spec.members)
