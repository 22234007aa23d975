"""What a report says, as plain data with a JSON round trip (`model_dump_json`, `ReportData.model_validate_json`).

Whatever is empty or None is left out of the page.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = str | int | float | bool | None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CurvePoint(_Frozen):
    """One point of a learning curve; `step` is an epoch or an optimiser step."""

    step: float
    train: float
    validation: float | None = None


class Reliability(_Frozen):
    """A reliability diagram: per bin the mean prediction, the mean observation, and how many fell into it."""

    label: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    count: tuple[int, ...]

    @model_validator(mode="after")
    def _same_bins(self) -> Reliability:
        if not len(self.predicted) == len(self.observed) == len(self.count):
            raise ValueError(f"calibration {self.label!r}: predicted, observed and count need one value a bin each")
        return self


class MethodValue(_Frozen):
    """A method's mean value; `low` and `high` bound its 95 % interval. `highlight` marks the method the report is about."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    highlight: bool = False


class ValueTable(_Frozen):
    """Methods compared in one unit; `share_of_reference` draws the reference at 1."""

    unit: str
    methods: tuple[MethodValue, ...]
    title: str = ""
    note: str = ""
    share_of_reference: bool = False


class Optimism(_Frozen):
    """What the evaluator believes a method's lists are worth, and what they are worth."""

    name: str
    believed: float
    true: float


class Latency(_Frozen):
    """Milliseconds: whole answers over HTTP, and the service's own stages."""

    http: tuple[float, ...] = ()
    stages: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    note: str = ""


class ExampleItem(_Frozen):
    """One item of a served list. `position` and `upstream_rank` count from 1; `margin` is the logit gap to the runner-up."""

    position: int
    id: int | str
    margin: float | None = None
    upstream_rank: int | None = None
    details: dict[str, Scalar] = Field(default_factory=dict)


class Example(_Frozen):
    """One served request; `input_order` holds the candidate ids in upstream order."""

    request_id: str
    user_id: int | str
    note: str = ""
    items: tuple[ExampleItem, ...]
    input_order: tuple[int | str, ...] = ()


class ReportData(_Frozen):
    """Everything on the page. `created` is an ISO 8601 time; `rejections` counts rows by the rule they broke."""

    title: str
    dataset: str
    created: str
    summary: tuple[tuple[str, Scalar], ...] = ()
    counts: dict[str, Scalar] = Field(default_factory=dict)
    rejections: dict[str, int] = Field(default_factory=dict)
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    curves: dict[str, tuple[CurvePoint, ...]] = Field(default_factory=dict)
    calibration: tuple[Reliability, ...] = ()
    values: ValueTable | None = None
    values_by_metric: tuple[ValueTable, ...] = ()
    optimism: tuple[Optimism, ...] = ()
    latency_ms: Latency = Latency()
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)

    def value_tables(self) -> tuple[ValueTable, ...]:
        """The main table first, then the others."""
        return ((self.values,) if self.values else ()) + self.values_by_metric
