"""Constraints in numbers: what the mask reads, compiled for one request (raw values) or for encoded requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from degre_prod.constraints.spec import Constraints, QuotaRule, StandingConstraints
from degre_prod.encoding.columns import UNKNOWN
from degre_prod.encoding.encoder import EncoderSpec
from degre_prod.encoding.store import EncodedSet
from degre_prod.errors import ConstraintError
from degre_prod.requests import Id

if TYPE_CHECKING:
    from degre_prod.constraints.types import Types

NONE = -1
ANY_NUMBER = 1 << 30  # of a quota without `max`


@dataclass(frozen=True)
class Rules:
    """Constraints of B requests with C candidates in upstream order, on lists of `length` slots, all to be filled.

    allowed_BC: may stand in the list at all (False for padding) · pinned_BL: the candidate of a pinned slot, else -1 ·
    must_BC: has to stand in it, pinned ones left out · gap_slots: least distance of two candidates with the same
    gap_group_BC (-1: no value, not restricted), 1 for no gap · membership_BQC: which candidates a quota counts, between
    min_BQ and max_BQ of them · quota_column_Q: quotas with the same number count values of the same column.
    """

    length: int
    allowed_BC: np.ndarray
    pinned_BL: np.ndarray
    must_BC: np.ndarray
    gap_slots: int
    gap_group_BC: np.ndarray
    membership_BQC: np.ndarray
    min_BQ: np.ndarray
    max_BQ: np.ndarray
    quota_column_Q: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.allowed_BC)

    @cached_property
    def types(self) -> Types:
        """The candidates by type, worked out once."""
        from degre_prod.constraints.types import types_of

        return types_of(self)

    def of(self, requests: np.ndarray) -> Rules:
        """The rules of some of the requests, by index."""
        return Rules(
            self.length,
            self.allowed_BC[requests],
            self.pinned_BL[requests],
            self.must_BC[requests],
            self.gap_slots,
            self.gap_group_BC[requests],
            self.membership_BQC[requests],
            self.min_BQ[requests],
            self.max_BQ[requests],
            self.quota_column_Q,
        )


def unconstrained(mask_BC: np.ndarray, length: int) -> Rules:
    """Only: candidates that are there, each once at most."""
    B, C = mask_BC.shape
    return Rules(
        length=length,
        allowed_BC=mask_BC.copy(),
        pinned_BL=np.full((B, length), NONE),
        must_BC=np.zeros((B, C), bool),
        gap_slots=1,
        gap_group_BC=np.full((B, C), NONE),
        membership_BQC=np.zeros((B, 0, C), bool),
        min_BQ=np.zeros((B, 0), np.int64),
        max_BQ=np.zeros((B, 0), np.int64),
        quota_column_Q=(),
    )


def compile_rules(
    constraints: StandingConstraints,
    candidate_ids: Sequence[Id],
    columns: Mapping[str, Sequence[Any]],
    length: int,
    *,
    trust_region: int | None = None,
) -> Rules:
    """Rules of one request (B = 1) with distinct candidates in upstream order.

    `columns`: raw categorical values of the candidates by column name, None where missing. `trust_region`: only the first so
    many candidates may be placed, besides those that are pinned or must be there. Raises ConstraintError for what can't be
    put in numbers: an unknown column, a pinned or demanded item that is no candidate, a pin beyond the list.
    """
    count = len(candidate_ids)
    allowed = np.ones(count, bool)
    if trust_region is not None:
        allowed[trust_region:] = False
    pinned, must = np.full(length, NONE), np.zeros(count, bool)
    if isinstance(constraints, Constraints) and (constraints.pinned or constraints.must_include or constraints.exclude):
        index = {item: c for c, item in enumerate(candidate_ids)}
        for item in constraints.must_include:
            must[_place(index, item, "must_include")] = True
        for slot, item in constraints.pinned.items():
            if slot >= length:
                raise ConstraintError(f"pinned: slot {slot} is beyond the list, whose slots are 0 to {length - 1}")
            pinned[slot] = _place(index, item, "pinned")
        demanded = pinned[pinned >= 0]
        must[demanded] = False
        allowed |= must
        allowed[demanded] = True
        allowed[[index[item] for item in constraints.exclude if item in index]] = False
    values = {name: _column(columns, name) for name in constraints.columns}
    groups = np.full(count, NONE)
    if constraints.gap is not None:
        codes: dict[str, int] = {}
        raw = values[constraints.gap.by]
        groups = np.array([NONE if v is None else codes.setdefault(str(v), len(codes)) for v in raw], np.int64)
    member = [np.array([v is not None and str(v) == q.value for v in values[q.by]], bool) for q in constraints.quotas]
    return Rules(
        length=length,
        allowed_BC=allowed[None],
        pinned_BL=pinned[None],
        must_BC=must[None],
        gap_slots=constraints.gap.slots if constraints.gap else 1,
        gap_group_BC=groups[None],
        membership_BQC=np.array(member, bool).reshape(1, len(member), count),
        **_bounds(constraints.quotas, 1),
    )


def encoded_rules(
    constraints: StandingConstraints,
    spec: EncoderSpec,
    encoded: EncodedSet,
    requests: np.ndarray,
    *,
    trust_region: int | None = None,
) -> Rules:
    """Rules of encoded requests (indices into the split) on lists of the schema's length.

    Values come from the encoder's vocabulary: one it does not hold counts as missing. A quota on such a value counts no
    item; raises ConstraintError when it demands some.
    """
    mask = np.array(encoded.arrays["mask"][requests])
    length = spec.data_schema.list_length
    if trust_region is not None:
        mask &= encoded.arrays["prior_rank"][requests] < trust_region
    codes = {name: _codes(spec, encoded, requests, name) for name in constraints.columns}
    groups = np.full(mask.shape, NONE)
    if constraints.gap is not None:
        groups, _ = codes[constraints.gap.by]
    member = np.zeros((len(mask), len(constraints.quotas), mask.shape[1]), bool)
    for i, quota in enumerate(constraints.quotas):
        codes_BC, vocabulary = codes[quota.by]
        if quota.value in vocabulary:
            member[:, i] = codes_BC == vocabulary.index(quota.value)
        elif quota.min:
            raise ConstraintError(
                f"quota {quota.by}={quota.value}: the encoder does not know this value (training rows hardly have it), "
                f"so no list holds {quota.min}; known are {', '.join(sorted(vocabulary)[:10])}"
            )
    return Rules(
        length=length,
        allowed_BC=mask,
        pinned_BL=np.full((len(mask), length), NONE),
        must_BC=np.zeros(mask.shape, bool),
        gap_slots=constraints.gap.slots if constraints.gap else 1,
        gap_group_BC=groups,
        membership_BQC=member,
        **_bounds(constraints.quotas, len(mask)),
    )


def _codes(
    spec: EncoderSpec, encoded: EncodedSet, requests: np.ndarray, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """codes_BC into the vocabulary of a categorical column of items or candidates, -1 for unknown and missing."""
    for group in ("item", "prior"):
        fitted = getattr(spec, group).categorical
        for j, column in enumerate(fitted):
            if column.name == name:
                codes = np.asarray(encoded.arrays[f"{group}_cat"][requests][:, :, j]) - (UNKNOWN + 1)
                return np.where(codes >= 0, codes, NONE), column.vocabulary
    raise ConstraintError(f"{name} is no categorical column of the encoder; encode the data set again")


def _place(index: Mapping[Id, int], item: Id, rule: str) -> int:
    try:
        return index[item]
    except KeyError:
        raise ConstraintError(f"{rule}: {item!r} is not among the candidates") from None


def _column(columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    try:
        return columns[name]
    except KeyError:
        known = ", ".join(columns) or "none"
        raise ConstraintError(f"{name} is no categorical column of the candidates; there are: {known}") from None


def _bounds(quotas: Sequence[QuotaRule], count: int) -> dict[str, Any]:
    columns = list(dict.fromkeys(q.by for q in quotas))
    least = np.array([q.min for q in quotas], np.int64)
    most = np.array([ANY_NUMBER if q.max is None else q.max for q in quotas], np.int64)
    return {
        "min_BQ": np.tile(least, (count, 1)),
        "max_BQ": np.tile(most, (count, 1)),
        "quota_column_Q": tuple(columns.index(q.by) for q in quotas),
    }
