"""`degre bench rollout-stats`: how often each way to analyse an experiment is wrong, and how soon it is right, by simulation.

A/A experiments (no effect) give false alarms, A/B experiments with a true effect give power and samples. The same users are
analysed four ways: always-valid at every look, the same with CUPED, a test at one look fixed beforehand, and that test at
every look, which is what people do who stop when it says "significant".
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from degre_prod.errors import ConfigurationError
from degre_prod.experiments.cuped import adjusted_difference, difference
from degre_prod.experiments.moments import Moments
from degre_prod.experiments.sequential import fixed_p_value, half_width, mixture_scale, p_value
from orchestration.bench.rollout_users import draw_sessions, moments_by_look

CHUNK = 50  # experiments evaluated in one call
BURN_INS = (10, 30, 100, 300, 1000)
Z95 = 1.96

WAYS = ("sequential", "sequential_cuped", "fixed_horizon", "naive_peeking")


@dataclass(frozen=True)
class Setting:
    """`users` of the longest run; the fixed horizon is half of it. `share`: of users in treatment. `min_users`: an arm's,
    below which nothing is said."""

    aa_experiments: int = 2000
    ab_experiments: int = 400
    users: int = 56_000
    share: float = 0.5
    looks: int = 1000
    effect: float = 0.02
    alpha: float = 0.05
    min_users: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.aa_experiments, self.ab_experiments) < 1 or self.looks < 2 or self.users < 4 * self.min_users:
            raise ConfigurationError(
                f"{self.aa_experiments} A/A and {self.ab_experiments} A/B experiments, {self.looks} looks, {self.users} users: "
                f"at least 1, 1, 2 and {4 * self.min_users}"
            )


@dataclass(frozen=True)
class Decisions:
    """When each of R experiments was decided (look, or -1: never), the effect it then showed, users by then."""

    look_R: np.ndarray
    effect_R: np.ndarray
    users_R: np.ndarray


@dataclass(frozen=True)
class Runs:
    """All decisions of one kind of experiment by way; an arm's most users at an alarm (0: none); whether intervals held the truth."""

    decisions: dict[str, Decisions]
    by_burn_in: dict[str, np.ndarray]
    covered: dict[str, np.ndarray]


def bench_rollout_stats(setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, and the curves for the plot (users → share decided, by way)."""
    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("experiments", total=setting.aa_experiments + setting.ab_experiments)
        aa = _run(setting, setting.aa_experiments, 0.0, 0, lambda count: bar.advance(task, count))
        ab = _run(setting, setting.ab_experiments, setting.effect, 1, lambda count: bar.advance(task, count))
    ways = {way: _summary(setting, aa, ab, way) for way in WAYS}
    first = ways["sequential"]
    document = {
        "aa_false_alarm_rate": first["aa_false_alarm_rate"],
        "aa_highest_allowed": setting.alpha
        + Z95 * (setting.alpha * (1 - setting.alpha) / setting.aa_experiments) ** 0.5,
        "power": first["power"],
        "mean_samples": first["mean_samples"],
        **ways,
        "aa_false_alarm_rate_by_min_users": {
            way: {str(m): float((aa.by_burn_in[way] >= m).mean()) for m in BURN_INS} for way in aa.by_burn_in
        },
        "setting": setting.__dict__ | {"fixed_horizon_users": setting.users // 2},
    }
    curves = {
        name: {way: _curve(setting, runs.decisions[way]) for way in WAYS} for name, runs in (("aa", aa), ("ab", ab))
    }
    return document, curves


def table(document: dict[str, Any]) -> str:
    """The ways side by side, as lines of text; time 1 is the fixed horizon."""
    names = ("aa_false_alarm_rate", "power", "mean_samples", "mean_time", "mean_effect_found")
    lines = [f"{'':18}" + "".join(f"{name:>21}" for name in names)]
    for way in WAYS:
        values = document[way]
        cells = (f"{values[name]:,.0f}" if name == "mean_samples" else f"{values[name]:.4f}" for name in names)
        lines.append(f"{way:18}" + "".join(f"{cell:>21}" for cell in cells))
    return "\n".join(lines)


def _run(setting: Setting, experiments: int, lift: float, kind: int, done: Any) -> Runs:
    """`lift`: the true effect. Experiment r draws from seed (setting.seed, kind, r), whatever the chunks."""
    parts: list[tuple[dict[str, Decisions], dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for begin in range(0, experiments, CHUNK):
        arms: list[tuple[Moments, Moments]] = []
        for r in range(begin, min(begin + CHUNK, experiments)):
            rng = np.random.Generator(np.random.SFC64((setting.seed, kind, r)))
            sessions = draw_sessions(rng, setting.users, setting.looks, lift, setting.share)
            arms.append(moments_by_look(sessions, setting.looks))
            done(1)
        control, treatment = (_stacked([pair[arm] for pair in arms]) for arm in (0, 1))
        parts.append(_evaluate(setting, control, treatment, float(np.log1p(lift))))
    return Runs(
        {way: _joined([part[0][way] for part in parts]) for way in WAYS},
        {way: np.concatenate([part[1][way] for part in parts]) for way in parts[0][1]},
        {way: np.concatenate([part[2][way] for part in parts]) for way in parts[0][2]},
    )


def _evaluate(
    setting: Setting, control: Moments, treatment: Moments, truth: float
) -> tuple[dict[str, Decisions], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Moments with trailing axes (R, T): experiments, looks."""
    tau = mixture_scale(float(np.log1p(setting.effect)), setting.alpha)
    users_RT = control.count + treatment.count
    least_RT = np.minimum(control.count, treatment.count)
    allowed_RT = least_RT >= setting.min_users
    plain_RT, variance_RT = difference(treatment, control, "relative")
    cuped_RT, cuped_variance_RT = adjusted_difference(treatment, control, "relative")
    rejected_RT = p_value(plain_RT, variance_RT, tau) < setting.alpha
    cuped_rejected_RT = p_value(cuped_RT, cuped_variance_RT, tau) < setting.alpha
    fixed_RT = fixed_p_value(plain_RT, variance_RT) < setting.alpha
    only_half_T = np.arange(setting.looks) == setting.looks // 2 - 1
    decisions = {
        "sequential": _decided(rejected_RT & allowed_RT, plain_RT, users_RT),
        "sequential_cuped": _decided(cuped_rejected_RT & allowed_RT, cuped_RT, users_RT),
        "fixed_horizon": _decided(fixed_RT & only_half_T, plain_RT, users_RT),
        "naive_peeking": _decided(fixed_RT & allowed_RT, plain_RT, users_RT),
    }
    decisions["fixed_horizon"].users_R[:] = users_RT[:, setting.looks // 2 - 1]  # it never stops sooner
    covered = {
        way: ((np.abs(effect_RT - truth) <= half_width(v_RT, tau, setting.alpha)) | ~allowed_RT).all(1)
        for way, effect_RT, v_RT in (
            ("sequential", plain_RT, variance_RT),
            ("sequential_cuped", cuped_RT, cuped_variance_RT),
        )
    }
    most = {
        way: np.where(alarm_RT, least_RT, 0).max(1)
        for way, alarm_RT in (("sequential", rejected_RT), ("sequential_cuped", cuped_rejected_RT))
    }
    return decisions, most, covered


def _decided(rejected_RT: np.ndarray, effect_RT: np.ndarray, users_RT: np.ndarray) -> Decisions:
    ever_R = rejected_RT.any(1)
    look_R = np.where(ever_R, rejected_RT.argmax(1), -1)
    rows = np.arange(len(look_R))
    return Decisions(look_R, np.where(ever_R, effect_RT[rows, look_R], np.nan), users_RT[rows, look_R].copy())


def _summary(setting: Setting, aa: Runs, ab: Runs, way: str) -> dict[str, float]:
    false, true = aa.decisions[way], ab.decisions[way]
    found_R = (true.look_R >= 0) & (true.effect_R > 0)
    out = {
        "aa_false_alarm_rate": float((false.look_R >= 0).mean()),
        "power": float(found_R.mean()),
        "power_at_fixed_horizon": float((found_R & (true.look_R < setting.looks // 2)).mean()),
        "mean_samples": float(true.users_R.mean()),
        "mean_time": float(true.users_R.mean() / (setting.users / 2)),
        "wrong_direction": float(((true.look_R >= 0) & (true.effect_R < 0)).mean()),
        "mean_effect_found": float(np.expm1(true.effect_R[found_R]).mean()) if found_R.any() else 0.0,
    }
    if way in ab.covered:
        out["coverage_at_all_looks"] = float(ab.covered[way].mean())
    return out


def _curve(setting: Setting, decisions: Decisions) -> dict[str, list[float]]:
    """Share decided by each look, thinned to at most 201 points."""
    decided_T = np.bincount(decisions.look_R[decisions.look_R >= 0], minlength=setting.looks).cumsum()
    at_P = np.unique(np.linspace(0, setting.looks - 1, 201).astype(int))
    return {
        "users": [float(setting.users * (t + 1) / setting.looks) for t in at_P],
        "share": [float(decided_T[t] / len(decisions.look_R)) for t in at_P],
    }


def _stacked(moments: list[Moments]) -> Moments:
    return Moments(
        np.stack([m.count for m in moments]),
        np.stack([m.sums_K for m in moments], axis=1),
        np.stack([m.products_KK for m in moments], axis=2),
    )


def _joined(parts: list[Decisions]) -> Decisions:
    return Decisions(
        np.concatenate([part.look_R for part in parts]),
        np.concatenate([part.effect_R for part in parts]),
        np.concatenate([part.users_R for part in parts]),
    )
