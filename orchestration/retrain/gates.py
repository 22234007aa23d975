"""Gates: each looks at figures, says whether they hold, and names the one that does not. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # these bring scipy and torch, and a night with nothing new is over before they are needed
    from degre_prod.config import GatesConfig
    from degre_prod.evaluation.drift import Drift
    from degre_prod.evaluation.off_policy import Estimate

STANDARD_ERRORS = 3.0  # of a rate of feedback: further off isn't chance


@dataclass(frozen=True, slots=True)
class Gate:
    """`reason` says which figure broke which bound, or that all hold; `figures` are what was looked at."""

    name: str
    passed: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def data_gate(
    requests: int, rejected_by_rule: dict[str, int], limits: GatesConfig, max_rejected_share: float, earlier: int = 0
) -> Gate:
    """Enough confirmed requests, not too many rejected. `requests`: accepted ones of the new log, `earlier`: of older ones
    that are trained on as well."""
    rejected = sum(rejected_by_rule.values())
    share = rejected / max(requests + rejected, 1)
    problems = []
    if requests + earlier < limits.min_requests:
        problems.append(f"{requests + earlier:,} usable requests, at least {limits.min_requests:,} are needed")
    if share > max_rejected_share:
        worst = max(rejected_by_rule, key=lambda rule: rejected_by_rule[rule])
        problems.append(f"{share:.1%} of the rows rejected, at most {max_rejected_share:.1%} may be; mostly {worst}")
    figures = {"requests": requests, "earlier_requests": earlier, "rejected_share": share}
    return _gate("data", problems, figures | {f"rejected_{rule}": n for rule, n in rejected_by_rule.items()})


def drift_gate(found: Sequence[Drift], limits: GatesConfig) -> Gate:
    """No feature moved or emptied beyond its bound, nor beyond what chance alone would do with so little data."""
    problems = []
    figures: dict[str, float] = {}
    for drift in found:
        name, ks = drift.feature, drift.ks or 0.0
        figures |= {f"psi_{name}": drift.psi, f"missing_{name}": drift.missing_now}
        if drift.ks is not None:
            figures[f"ks_{name}"] = ks
        if drift.missing_now - drift.missing_before > limits.max_missing_rise:
            problems.append(
                f"{name} is missing in {drift.missing_now:.1%} of the newest rows, {drift.missing_before:.1%} before"
            )
        elif drift.constant:
            problems.append(f"{name} has one value in all of the newest rows, several before")
        elif drift.psi > max(limits.max_psi, drift.psi_by_chance):
            told = "" if drift.ks is None else f", KS {ks:.2f}"
            problems.append(f"{name} has PSI {drift.psi:.2f}{told}, at most {limits.max_psi:g} is allowed")
        elif ks > max(limits.max_ks, drift.ks_by_chance):
            problems.append(f"{name} has KS {ks:.2f}, PSI {drift.psi:.2f}; at most {limits.max_ks:g} is allowed")
    return _gate("drift", problems, figures)


@dataclass(frozen=True, slots=True)
class FeedbackRate:
    """What a list earns of one objective: mean and variance over so many lists."""

    mean: float
    variance: float
    lists: int


def feedback_gate(before: dict[str, FeedbackRate], now: dict[str, FeedbackRate], limits: GatesConfig) -> Gate:
    """No objective is earned several times as often, or a fraction as often, as before, surely: more than three standard
    errors beyond the bound. A variance is at least the mean (Poisson's), or no feedback at all would count as certain."""
    problems: list[str] = []
    figures: dict[str, float] = {}
    factor = limits.max_feedback_ratio
    for name, then in before.items():
        figures |= {f"{name}_before": then.mean, f"{name}_now": now[name].mean}
        if _surely_above(now[name], then, factor) or _surely_above(then, now[name], factor):
            problems.append(
                f"{name}: {now[name].mean:.3f} a list in the newest data, {then.mean:.3f} before; "
                f"a factor of {factor:g} is allowed"
            )
    return _gate("feedback", problems, figures)


def _surely_above(high: FeedbackRate, low: FeedbackRate, factor: float) -> bool:
    excess = high.mean - factor * low.mean
    of_high = max(high.variance, high.mean) / high.lists
    of_low = factor**2 * max(low.variance, low.mean, high.mean / factor) / low.lists
    return excess > 0 and excess > STANDARD_ERRORS * (of_high + of_low) ** 0.5


def evaluator_gate(
    calibration_error: float,
    rank_quality: float | None,
    champion_quality: float | None,
    limits: GatesConfig,
    told: Sequence[str] = (),
) -> Gate:
    """Calibration and rank quality (AUC of step values against feedback) on the newest held-out requests.

    `rank_quality`: None where there is too little feedback to tell. `champion_quality`: the champion's evaluator on the same
    requests; far below chance it says that labels are wrong. `told`: what else the reason says.
    """
    problems = []
    figures = {"calibration_error": calibration_error}
    if calibration_error > limits.max_calibration_error:
        problems.append(f"calibration error {calibration_error:.3f}, at most {limits.max_calibration_error:g}")
    if rank_quality is None:
        problems.append("too little held-out feedback to tell how well the evaluator ranks")
    else:
        figures["rank_quality"] = rank_quality
        if rank_quality < limits.min_rank_quality:
            problems.append(f"AUC {rank_quality:.3f} on held-out feedback, at least {limits.min_rank_quality:g}")
    if champion_quality is not None:
        figures["champion_rank_quality"] = champion_quality
        if champion_quality < limits.min_champion_rank_quality:
            problems.append(
                f"the champion's evaluator has AUC {champion_quality:.3f} on the newest feedback, below "
                f"{limits.min_champion_rank_quality:g}: are its labels right?"
            )
    return _gate("evaluator", problems, figures, told)


def value_gate(
    judged: Estimate,
    champion_judged: float,
    off_policy: dict[str, Estimate],
    limits: GatesConfig,
    *,
    champion: str = "the champion",
) -> Gate:
    """Candidate against champion. `judged`: the judge's paired difference, `off_policy`: estimates of the same difference
    by name. Each stops the candidate where it shows a loss beyond the bound that chance doesn't explain: the judge by its
    mean, if the interval leaves out 0, an estimate by its interval, if that lies below the bound. An estimate below the
    minimum of effective samples is not estimable and decides nothing.

    `champion`: what the candidate is compared with, in words.
    """
    bound = -limits.max_value_loss * champion_judged
    problems = []
    figures = {
        "judged_difference": judged.value,
        "judged_low": judged.low,
        "judged_high": judged.high,
        "champion_judged": champion_judged,
    }
    if judged.value < bound and judged.high < 0:
        problems.append(
            f"the judge puts the candidate's lists {judged.value:+.4f} from {champion}'s {champion_judged:.4f} "
            f"({judged.low:+.4f} to {judged.high:+.4f}); at most {limits.max_value_loss:.1%} may be lost"
        )
    told = []
    for name, estimate in off_policy.items():
        figures[f"{name}_effective_samples"] = estimate.effective_samples
        if estimate.effective_samples < limits.min_effective_samples:
            told.append(f"{name} not estimable ({estimate.effective_samples:.0f} effective samples)")
            continue
        figures |= {f"{name}_difference": estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if estimate.high < bound:
            problems.append(f"{name} puts the candidate below {champion}: at most {estimate.high:+.4f}")
    if not off_policy:
        told.append("off-policy estimates not estimable (nothing logged with propensities)")
    return _gate("value", problems, figures, told)


@dataclass(frozen=True, slots=True)
class ListFigures:
    """A bundle's lists over the same requests. `latency_ms`: median time of decoding one; `coverage`: share of the items
    offered that any list shows; `diversity`: how much the items of a list differ, by features, mean over lists."""

    latency_ms: float
    coverage: float
    diversity: float


def bundle_gate(invalid_lists: int, lists: ListFigures, champion: ListFigures | None, limits: GatesConfig) -> Gate:
    """Every list valid, decoding not much slower than the champion's, coverage and diversity not collapsed."""
    problems = []
    figures = {"invalid_lists": float(invalid_lists), **asdict(lists)}
    if invalid_lists:
        problems.append(f"{invalid_lists} lists break a constraint")
    if champion is not None:
        figures |= {f"champion_{name}": value for name, value in asdict(champion).items()}
        if lists.latency_ms > limits.max_latency_ratio * champion.latency_ms:
            problems.append(f"{lists.latency_ms:.2f} ms a list against the champion's {champion.latency_ms:.2f}")
        if lists.coverage < limits.min_coverage_ratio * champion.coverage:
            problems.append(
                f"lists show {lists.coverage:.1%} of the items offered, the champion's {champion.coverage:.1%}"
            )
        if lists.diversity < limits.min_diversity_ratio * champion.diversity:
            problems.append(
                f"items of a list differ by {lists.diversity:.2f}, of the champion's by {champion.diversity:.2f}"
            )
    return _gate("bundle", problems, figures)


def _gate(name: str, problems: list[str], figures: dict[str, float], told: Sequence[str] = ()) -> Gate:
    return Gate(name, not problems, "; ".join([*(problems or ["all figures hold"]), *told]), figures)
