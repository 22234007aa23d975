"""The greedy pass in ONNX Runtime: encoded arrays in, a list and its margins out.

Without rules, and with rules that only say which candidates may ever be chosen, one call does it all. Other rules need two
smaller graphs: one call to encode, one a slot, and between two slots the mask that mining, targets and training use, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from degre_prod.constraints.greedy import by_item_alone, leading_feasible
from degre_prod.constraints.rules import Rules
from degre_prod.encoding.encoder import Encoded
from degre_prod.errors import BundleError, ConstraintError

ALONE = 1e8  # a margin above this means that no other item was left


class Reasons(NamedTuple):
    """Why each item stands in its slot; see Decoded."""

    margins: np.ndarray
    logits: np.ndarray | None = None
    runner_up: np.ndarray | None = None


@dataclass(frozen=True)
class Decoded:
    """A greedy list: order (length,) of indices into the candidates, and what explains it, worked out when it is asked for.

    margins (length,) float32, inf where nothing else was left · logits (length,) float32 of the chosen items and runner_up
    (length,), indices into the candidates, -1 where nothing else was left; both None from a bundle of format 1. The runner-up
    is the best of those that the rules left.
    """

    order: np.ndarray
    reason: Callable[[], Reasons]

    @cached_property
    def _reasons(self) -> Reasons:
        return self.reason()

    @property
    def margins(self) -> np.ndarray:
        """See the class."""
        return self._reasons.margins

    @property
    def logits(self) -> np.ndarray | None:
        """See the class."""
        return self._reasons.logits

    @property
    def runner_up(self) -> np.ndarray | None:
        """See the class."""
        return self._reasons.runner_up


@dataclass(frozen=True)
class Graph:
    """An ONNX Runtime session on one thread; safe to call from several threads.

    `arrays`: its name and the encoder's of each array of the request. `takes_allowed`: graphs of format 3 do; `takes_mask`:
    those before it did.
    """

    session: Any
    arrays: tuple[tuple[str, str], ...]
    takes_allowed: bool
    takes_mask: bool

    def __call__(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the graph's order."""
        outputs: list[np.ndarray] = self.session.run(None, feed)
        return outputs


@dataclass(frozen=True)
class Decoder:
    """The graphs of a bundle; `encode` and `step` are None in bundles of formats 1 and 2, which follow no rules."""

    whole: Graph
    encode: Graph | None = None
    step: Graph | None = None

    @property
    def follows_rules(self) -> bool:
        """Whether `decode` takes rules."""
        return self.step is not None

    def decode(self, encoded: Encoded, length: int, rules: Rules | None = None) -> Decoded:
        """The greedy list of one encoded request, cut at `length`, at L and at the number of candidates.

        With `rules` (of this request alone) the list has their length, which is at most L. Raises BundleError when this
        bundle follows none, ConstraintError when no list obeys them.
        """
        if rules is None:
            return self._at_once(encoded, length, None)
        if self.encode is None or self.step is None:
            raise BundleError("a bundle of format 1 or 2 follows no rules")
        if by_item_alone(rules):
            return self._at_once(encoded, rules.length, rules.allowed_BC[0])
        return _by_steps(self.encode, self.step, encoded, rules)

    def _at_once(self, encoded: Encoded, length: int, allowed_C: np.ndarray | None) -> Decoded:
        C = len(encoded["prior_rank_C"])
        feed = _feed(self.whole, encoded)
        if self.whole.takes_allowed:
            feed["allowed"] = np.ones((1, C), bool) if allowed_C is None else allowed_C[None]
        order, *more = self.whole(feed)
        take = min(length, C if allowed_C is None else int(allowed_C.sum()), order.shape[1])
        chosen = order[0, :take]
        if self.whole.takes_mask:
            return Decoded(chosen, partial(_told, take, *more))
        return Decoded(chosen, partial(_seen, chosen, encoded["prior_rank_C"], more[0][0, :take]))


def open_decoder(whole: Path, encode: Path | None = None, step: Path | None = None) -> Decoder:
    """Open a bundle's graphs; raises BundleError when ONNX Runtime cannot."""
    if encode is None or step is None:
        return Decoder(_open(whole))
    return Decoder(_open(whole), _open(encode), _open(step))


def _told(
    take: int, margins: np.ndarray, logits: np.ndarray | None = None, runner_up: np.ndarray | None = None
) -> Reasons:
    """As graphs of formats 1 and 2 worked it out for every answer."""
    margin = margins[0, :take]
    alone = margin > ALONE
    margin = np.where(alone, np.float32(np.inf), margin)
    if logits is None or runner_up is None:
        return Reasons(margin)
    return Reasons(margin, logits[0, :take], np.where(alone, -1, runner_up[0, :take]))


def _seen(order_T: np.ndarray, prior_rank_C: np.ndarray, logits_TC: np.ndarray) -> Reasons:
    """From the logits of every slot, candidates in ascending prior rank, those that could not be chosen far below."""
    by_rank = np.argsort(prior_rank_C, kind="stable")
    slots, place = np.arange(len(order_T)), np.argsort(by_rank)[order_T]
    logits, rest = logits_TC[slots, place], logits_TC.copy()
    rest[slots, place] = -np.inf
    second = rest.argmax(1)
    margin = logits - rest[slots, second]
    alone = margin > ALONE
    return Reasons(np.where(alone, np.float32(np.inf), margin), logits, np.where(alone, -1, by_rank[second]))


def _by_steps(encode: Graph, step: Graph, encoded: Encoded, rules: Rules) -> Decoded:
    """Slot by slot, among the candidates that `feasible_next` leaves; ties by prior rank."""
    by_rank = np.argsort(encoded["prior_rank_C"], kind="stable")  # the order of candidates in both graphs
    place = np.argsort(by_rank)
    z, keys, x, *state = encode(_feed(encode, encoded))
    T = rules.length
    order, runner_up = np.full(T, -1), np.full(T, -1)
    logits, margins = np.empty(T, np.float32), np.full(T, np.inf, np.float32)
    for t in range(T):
        logits_C, *state = step({"x": x, "keys": keys} | {f"state_{i}": s for i, s in enumerate(state)})
        best_first = np.argsort(-logits_C, kind="stable")
        found = leading_feasible(rules, order[:t], by_rank[best_first], 2)
        if not found:
            raise ConstraintError(f"no candidate may stand in slot {t}")
        chosen = place[found[0]]
        order[t], logits[t], x = found[0], logits_C[chosen], z[None, chosen : chosen + 1]
        if len(found) > 1:
            runner_up[t], margins[t] = found[1], logits[t] - logits_C[place[found[1]]]
    return Decoded(order, lambda: Reasons(margins, logits, runner_up))


def _feed(graph: Graph, encoded: Encoded) -> dict[str, np.ndarray]:
    """The arrays of one request under the graph's names for them; every candidate is there."""
    feed = {name: encoded[key][None] for name, key in graph.arrays}
    if graph.takes_mask:
        feed["mask"] = np.ones((1, len(encoded["prior_rank_C"])), bool)
    return feed


def _open(file: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: two gained 7 % at 100 candidates and spin while they wait. Other options made no difference.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many types of its own
        raise BundleError(f"{file} does not load in ONNX Runtime: {error}") from error
    return graph_of(session)


def graph_of(session: Any) -> Graph:
    """A session with what it takes."""
    names = [i.name for i in session.get_inputs()]
    arrays = tuple((name, _key(name)) for name in names if name not in ("mask", "allowed"))
    return Graph(session, arrays, "allowed" in names, "mask" in names)


def _key(name: str) -> str:
    """The encoder's name of an input of the graph."""
    if name == "prior_rank":
        return "prior_rank_C"
    return f"{name}_CF" if name.startswith(("item", "prior")) else f"{name}_F"
