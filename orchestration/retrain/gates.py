"""Gates: each looks at figures, says whether they hold, and names the one that does not. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from degre_prod.config import GatesConfig
from degre_prod.evaluation.drift import Drift
from degre_prod.evaluation.off_policy import Estimate


@dataclass(frozen=True, slots=True)
class Gate:
    """`reason` says which figure broke which bound, or that all hold; `figures` are what was looked at."""

    name: str
    passed: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def data_gate(requests: int, rejected_by_rule: dict[str, int], limits: GatesConfig, max_rejected_share: float) -> Gate:
    """Enough confirmed requests, not too many rejected. `requests`: accepted ones."""
    rejected = sum(rejected_by_rule.values())
    share = rejected / max(requests + rejected, 1)
    problems = []
    if requests < limits.min_requests:
        problems.append(f"{requests:,} usable requests, at least {limits.min_requests:,} are needed")
    if share > max_rejected_share:
        worst = max(rejected_by_rule, key=lambda rule: rejected_by_rule[rule])
        problems.append(f"{share:.1%} of the rows rejected, at most {max_rejected_share:.1%} may be; mostly {worst}")
    return _gate("data", problems, {"requests": requests, "rejected_share": share})


def drift_gate(found: Sequence[Drift], limits: GatesConfig) -> Gate:
    """No feature moved or emptied beyond its bound."""
    problems = []
    for drift in found:
        rise = drift.missing_now - drift.missing_before
        if rise > limits.max_missing_rise:
            problems.append(
                f"{drift.feature} is missing in {drift.missing_now:.1%} of the newest rows, {drift.missing_before:.1%} before"
            )
        elif drift.psi > limits.max_psi:
            ks = "" if drift.ks is None else f", KS {drift.ks:.2f}"
            problems.append(f"{drift.feature} has PSI {drift.psi:.2f}{ks}, at most {limits.max_psi:g} is allowed")
    return _gate("drift", problems, {f"psi_{d.feature}": d.psi for d in found})


def feedback_gate(rate_before: dict[str, float], rate_now: dict[str, float], limits: GatesConfig) -> Gate:
    """No objective is earned several times as often, or a fraction as often, as before (mean of a list)."""
    problems: list[str] = []
    figures: dict[str, float] = {}
    for name, before in rate_before.items():
        ratio = rate_now[name] / before if before else float("inf") if rate_now[name] else 1.0
        figures |= {f"{name}_before": before, f"{name}_now": rate_now[name]}
        if not 1 / limits.max_feedback_ratio <= ratio <= limits.max_feedback_ratio:
            problems.append(
                f"{name}: {rate_now[name]:.3f} a list in the newest data, {before:.3f} before; "
                f"a factor of {limits.max_feedback_ratio:g} is allowed"
            )
    return _gate("feedback", problems, figures)


def evaluator_gate(
    calibration_error: float, rank_quality: float, champion_quality: float | None, limits: GatesConfig
) -> Gate:
    """Calibration and rank quality (AUC of step values against feedback) on the newest held-out requests.

    `champion_quality`: the champion's evaluator on the same requests; far below chance it says that labels are wrong.
    """
    problems = []
    if calibration_error > limits.max_calibration_error:
        problems.append(f"calibration error {calibration_error:.3f}, at most {limits.max_calibration_error:g}")
    if rank_quality < limits.min_rank_quality:
        problems.append(f"AUC {rank_quality:.3f} on held-out feedback, at least {limits.min_rank_quality:g}")
    figures = {"calibration_error": calibration_error, "rank_quality": rank_quality}
    if champion_quality is not None:
        figures["champion_rank_quality"] = champion_quality
        if champion_quality < limits.min_champion_rank_quality:
            problems.append(
                f"the champion's evaluator has AUC {champion_quality:.3f} on the newest feedback, below "
                f"{limits.min_champion_rank_quality:g}: are its labels right?"
            )
    return _gate("evaluator", problems, figures)


def value_gate(judged: Estimate, champion_judged: float, off_policy: dict[str, Estimate], limits: GatesConfig) -> Gate:
    """Candidate against champion. `judged`: the judge's paired difference, `off_policy`: estimates of the same difference
    by name. An estimate below the minimum of effective samples is not estimable and decides nothing."""
    bound = -limits.max_value_loss * champion_judged
    problems = []
    figures = {"judged_difference": judged.value, "judged_low": judged.low, "champion_judged": champion_judged}
    if judged.value < bound:
        problems.append(
            f"the judge values the candidate's lists at {judged.value:+.4f} against the champion's {champion_judged:.4f}; "
            f"at most {limits.max_value_loss:.1%} may be lost"
        )
    told = []
    for name, estimate in off_policy.items():
        figures |= {f"{name}_difference": estimate.value, f"{name}_effective_samples": estimate.effective_samples}
        if estimate.effective_samples < limits.min_effective_samples:
            told.append(f"{name} not estimable ({estimate.effective_samples:.0f} effective samples)")
        elif estimate.high < bound:
            problems.append(f"{name} puts the candidate below the champion: at most {estimate.high:+.4f}")
    return _gate("value", problems, figures, told)


def bundle_gate(
    invalid_lists: int,
    latency_ms: float,
    champion_latency_ms: float | None,
    coverage: float,
    champion_coverage: float | None,
    limits: GatesConfig,
) -> Gate:
    """Every list valid, decoding not much slower than the champion's, catalogue coverage not collapsed.

    `coverage`: share of the candidates' distinct items that any list shows.
    """
    problems = []
    figures = {"invalid_lists": float(invalid_lists), "latency_ms": latency_ms, "coverage": coverage}
    if invalid_lists:
        problems.append(f"{invalid_lists} lists break a constraint")
    if champion_latency_ms is not None:
        figures["champion_latency_ms"] = champion_latency_ms
        if latency_ms > limits.max_latency_ratio * champion_latency_ms:
            problems.append(f"{latency_ms:.2f} ms a list against the champion's {champion_latency_ms:.2f}")
    if champion_coverage is not None:
        figures["champion_coverage"] = champion_coverage
        if coverage < limits.min_coverage_ratio * champion_coverage:
            problems.append(f"lists show {coverage:.1%} of the items offered, the champion's {champion_coverage:.1%}")
    return _gate("bundle", problems, figures)


def _gate(name: str, problems: list[str], figures: dict[str, float], told: Sequence[str] = ()) -> Gate:
    return Gate(name, not problems, "; ".join([*problems, *told]) or "all figures hold", figures)
