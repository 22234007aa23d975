"""Which arm a user gets: a salted hash of the user id, so that every replica says the same without asking anyone.

u = blake2b(experiment, salt, user id) as a number in [0, 1). Treatments come in pairs; a pair shares one region of the
unit interval, its first arm grows from the region's start, its second from the region's end, and the control has what is
left. An arm's users depend on its own weight alone, hence nobody leaves an arm when its weight grows, whatever the others
do. One or two treatments may grow to any weights; with more, a pair's weights must fit into its region.

The same id as integer and as string (42, "42") is the same user. Assignments of two experiments, or of two salts, are
independent. Hashing: about a microsecond a user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from degre_prod.errors import ConfigurationError

UserId = int | str
Reason = Literal["hash", "override", "holdout", "out_of_scope"]

_BITS = 53  # of the 64: as many as a float holds exactly, so that u < 1 always
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Span:
    """Users with low ≤ u < high get the arm."""

    low: float
    high: float
    arm: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """An arm and why. Only users assigned by hash are comparable: exposures with `counted` False stay out of analyses."""

    arm: str
    reason: Reason

    @property
    def counted(self) -> bool:
        """Whether the analysis may count this user."""
        return self.reason == "hash"


@dataclass(frozen=True, slots=True)
class Holdout:
    """A share of users that no experiment touches. Keep `salt` from experiment to experiment: so the users stay the same."""

    share: float
    salt: str = "holdout"


@dataclass(frozen=True)
class Allocation:
    """Everything that decides a user's arm in one experiment.

    `arms`: name → weight (share of users), the control first, summing to 1. `overrides`: user id → arm, for testers.
    `scope`: key of the request's context → values that take part, e.g. {"country": ("DE", "AT")}; a context without the
    key is out of scope. Who is held out or out of scope gets the control. Overrides go before everything.

    Raises ConfigurationError for weights that are no shares, and for an override to an unknown arm.
    """

    experiment: str
    salt: str
    arms: Mapping[str, float]
    overrides: Mapping[UserId, str] = field(default_factory=dict)
    scope: Mapping[str, Sequence[str]] = field(default_factory=dict)
    holdout: Holdout | None = None
    _spans: tuple[Span, ...] = field(init=False, repr=False, compare=False)
    _overrides: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spans", spans(self.arms))
        object.__setattr__(self, "_overrides", {str(user): arm for user, arm in self.overrides.items()})
        unknown = sorted({arm for arm in self.overrides.values() if arm not in self.arms})
        if unknown:
            raise ConfigurationError(f"overrides to {', '.join(unknown)}: the arms are {', '.join(self.arms)}")
        if self.holdout is not None and not 0 <= self.holdout.share < 1:
            raise ConfigurationError(f"holdout share {self.holdout.share}: must be at least 0 and below 1")

    @property
    def control(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    def assign(self, user_id: UserId, context: Mapping[str, object] | None = None) -> Assignment:
        """The user's arm for a request with this context."""
        override = self._overrides.get(str(user_id))
        if override is not None:
            return Assignment(override, "override")
        context = context or {}
        if any(str(context.get(key)) not in values for key, values in self.scope.items()):
            return Assignment(self.control, "out_of_scope")
        if self.holdout is not None and unit_interval(user_id, "", self.holdout.salt) < self.holdout.share:
            return Assignment(self.control, "holdout")
        return Assignment(_arm(self._spans, unit_interval(user_id, self.experiment, self.salt)), "hash")


def assign(user_id: UserId, experiment: str, salt: str, arms: Mapping[str, float]) -> str:
    """The user's arm by hash alone; `arms` as in `Allocation`. Raises ConfigurationError for weights that are no shares."""
    return _arm(spans(arms), unit_interval(user_id, experiment, salt))


def unit_interval(user_id: UserId, experiment: str, salt: str) -> float:
    """u of a user, uniform on [0, 1), a multiple of 2⁻⁵³."""
    return _u(_keyed(experiment, salt), user_id)


def unit_intervals(user_ids: Iterable[UserId], experiment: str, salt: str) -> list[float]:
    """u of many users."""
    keyed = _keyed(experiment, salt)
    return [_u(keyed, user_id) for user_id in user_ids]


def spans(arms: Mapping[str, float]) -> tuple[Span, ...]:
    """The treatments' parts of the unit interval; what they leave is the control's and comes last, as [0, 1).

    Raises ConfigurationError for weights outside 0 … 1, for a sum that isn't 1, and for a pair that outgrows its region.
    """
    if not arms:
        raise ConfigurationError("an experiment without arms: name at least the control, e.g. {'champion': 1.0}")
    for arm, weight in arms.items():
        if not 0 <= weight <= 1:
            raise ConfigurationError(f"weight of {arm} is {weight}: must be within 0 … 1")
    total = sum(arms.values())
    if abs(total - 1) > _TOLERANCE:
        raise ConfigurationError(f"the weights of {', '.join(arms)} sum to {total:g}: must sum to 1")
    control, *treatments = arms
    pairs = (len(treatments) + 1) // 2
    parts: list[Span] = []
    for pair in range(pairs):
        low, high = pair / pairs, (pair + 1) / pairs
        members = treatments[2 * pair : 2 * pair + 2]
        weight = sum(arms[arm] for arm in members)
        if weight > high - low + _TOLERANCE:
            raise ConfigurationError(
                f"{' and '.join(members)} have weight {weight:g} together: with {len(treatments)} treatments a pair may "
                f"have {1 / pairs:g}; run fewer treatments at once"
            )
        parts.append(Span(low, min(low + arms[members[0]], high), members[0]))
        if len(members) == 2:
            parts.append(Span(high - arms[members[1]], high, members[1]))
    return (*parts, Span(0.0, 1.0, control))


def _arm(parts: Sequence[Span], u: float) -> str:
    for part in parts[:-1]:
        if part.low <= u < part.high:
            return part.arm
    return parts[-1].arm


def _keyed(experiment: str, salt: str) -> hashlib.blake2b:
    # Each part with its length before it: ("a", "bc") and ("ab", "c") must differ.
    parts = (part.encode() for part in (experiment, salt))
    return hashlib.blake2b(b"".join(len(part).to_bytes(4, "big") + part for part in parts), digest_size=8)


def _u(keyed: hashlib.blake2b, user_id: UserId) -> float:
    state = keyed.copy()
    state.update(str(user_id).encode())
    return (int.from_bytes(state.digest(), "big") >> (64 - _BITS)) / float(1 << _BITS)
