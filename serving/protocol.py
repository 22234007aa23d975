"""What goes over HTTP: requests and responses of `/v1/rerank` and `/v1/feedback`.

Unknown fields are refused, so that a misspelt one is heard of. Ids are all integers or all strings, as the bundle's
schema says; the engine checks that, and the names and kinds of scores, features and context.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

Id = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)] | Annotated[StrictStr, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
FeatureValue = Number | Annotated[StrictStr, Field(max_length=1024)] | None
# Strict, so that JSON numbers are not taken for seconds since 1970.
Moment = Annotated[AwareDatetime, Field(strict=True)]
# Of one spelling each, or two keys of a JSON object could mean the same slot.
Slot = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) is int else v), Field(pattern=r"^(0|[1-9][0-9]{0,3})$")
]
RequestId = Annotated[StrictStr, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Source = Literal["generator", "cache", "fallback_score", "fallback_order", "client_fallback"]

MAX_NAMES = 64
MAX_CANDIDATES = 5000  # whatever the bundle takes: parsing stops here
MAX_RECENT_EVENTS = 1000
MAX_FEEDBACK_EVENTS = 1000
MAX_DEADLINE_MS = 10_000
MAX_RULES = 64  # pinned slots, demanded items, quotas: of each


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Message):
    """One item to choose from, in upstream order. `scores` and `features` are what only the request knows."""

    id: Id
    scores: dict[Name, Number | None] = Field(default_factory=dict, max_length=MAX_NAMES)
    features: dict[Name, FeatureValue] = Field(default_factory=dict, max_length=MAX_NAMES)


class RecentEventIn(_Message):
    """Something the user just did, strictly before the request."""

    item_id: Id
    type: Name
    timestamp: Moment


class GapIn(_Message):
    """Two items with the same value of the categorical column `by` stand at least `slots` slots apart (2: no neighbours)."""

    by: Name
    slots: Annotated[int, Field(strict=True, ge=2, le=MAX_CANDIDATES)]


class QuotaIn(_Message):
    """At least `min` and at most `max` items have this value of the categorical column `by`."""

    by: Name
    value: Annotated[StrictStr, Field(max_length=1024)]
    min: Annotated[int, Field(strict=True, ge=0, le=MAX_CANDIDATES)] = 0
    max: Annotated[int, Field(strict=True, ge=0, le=MAX_CANDIDATES)] | None = None


class ConstraintsIn(_Message):
    """What the list has to obey, besides the standing constraints of the bundle. All of it holds, or the answer is 422."""

    exclude: list[Id] = Field(
        default_factory=list, max_length=MAX_CANDIDATES, description="never shown; need not be candidates"
    )
    must_include: list[Id] = Field(default_factory=list, max_length=MAX_RULES, description="candidates to be shown")
    pinned: dict[Slot, Id] = Field(
        default_factory=dict, max_length=MAX_RULES, description='slot, counted from 0, to candidate: {"0": 101}'
    )
    gap: GapIn | None = None
    quotas: list[QuotaIn] = Field(default_factory=list, max_length=MAX_RULES)


class RerankRequest(_Message):
    """Body of `POST /v1/rerank`."""

    request_id: RequestId | None = Field(None, description="made up by the service when absent; feedback refers to it")
    user_id: Id
    candidates: list[Candidate] = Field(
        min_length=1, max_length=MAX_CANDIDATES, description="in upstream order; duplicates are answered once"
    )
    context: dict[Name, FeatureValue] = Field(default_factory=dict, max_length=MAX_NAMES)
    recent_events: list[RecentEventIn] = Field(default_factory=list, max_length=MAX_RECENT_EVENTS)
    length: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="items wanted; at most the bundle's list length, which is the default"
    )
    deadline_ms: Annotated[float, Field(strict=True, gt=0, le=MAX_DEADLINE_MS, allow_inf_nan=False)] | None = Field(
        None, description="milliseconds until an answer is due, a fallback if need be"
    )
    constraints: ConstraintsIn | None = Field(None, description="what the list has to obey")
    explain: Annotated[bool, Field(strict=True)] = Field(
        False, description="adds each slot's logit, margin, runner-up and feature values; never cached"
    )
    event_timestamp: Moment | None = Field(
        None, description="the request's own time, for replaying logs; only with serving.clock = request"
    )


class RankedItem(_Message):
    """`position` counts from 0. The rest explains the choice (`explain: true`)."""

    id: Id
    position: int
    logit: float | None = Field(None, description="of this item when the slot was filled")
    margin: float | None = Field(None, description="logit less the runner-up's; absent where no other item was left")
    runner_up: Id | None = Field(None, description="the item that nearly was here")
    features: dict[str, Any] | None = Field(None, description="values read for this item; null is missing")


class RerankResponse(BaseModel):
    """Answer of `/v1/rerank`. Unknown fields are ignored: newer services may add some."""

    model_config = ConfigDict(frozen=True)

    request_id: str
    items: list[RankedItem]
    bundle: str = Field(description="sha256 of the manifest of the bundle that answered; empty when no service did")
    arm: str = Field(description="who answered: champion, or the challenger of a running experiment")
    experiment: str | None = Field(None, description="id of the experiment this request counts in")
    source: Source
    degraded: list[str] = Field(default_factory=list, description="why the answer is worse than it could be")
    timings_ms: dict[str, float] = Field(default_factory=dict, description="milliseconds by stage")
    user_features: dict[str, Any] | None = Field(None, description="values read for the user (`explain: true`)")

    def ids(self) -> list[int | str]:
        """The item ids in order."""
        return [item.id for item in self.items]


class FeedbackEvent(_Message):
    """What the user did with a shown item. `event_id` makes a repeated delivery harmless."""

    event_id: RequestId
    id: Id
    type: Name = Field(description="an objective of the bundle's schema, such as click")
    timestamp: Moment


class FeedbackRequest(_Message):
    """Body of `POST /v1/feedback`. `shown_ids` without events says: shown, and nothing happened."""

    request_id: RequestId
    shown_ids: list[Id] | None = Field(None, min_length=1, max_length=MAX_FEEDBACK_EVENTS)
    events: list[FeedbackEvent] = Field(default_factory=list, max_length=MAX_FEEDBACK_EVENTS)


class FeedbackAccepted(_Message):
    """Answer of `/v1/feedback`: Redis has taken the append."""

    request_id: str
    accepted: int


class FieldProblem(BaseModel):
    """One field of a 422 problem document."""

    field: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457 problem document (`application/problem+json`)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = Field(default_factory=list)
