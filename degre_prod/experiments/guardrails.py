"""Guardrails by non-inferiority: not "no harm was found" but "harm of more than the bound is ruled out".

Harm h is signed so that more is worse; its bound is b. Two one-sided always-valid tests, at any look:

- ok: the upper bound of h is below b. All guardrails must be ok before a treatment may ship, so that no correction is
  due: a harmful treatment passes all of them at most as often as it passes the one it breaks (intersection-union).
- breach: the lower bound of h is above b. One is enough to roll back, hence Holm's correction over all of them.

(Schultzberg, Ankargren, Frånberg 2024, "Risk-aware product decisions in A/B tests with multiple metrics", arXiv 2402.11609.)
The primary metric counts among the harms, with bound 0. A share of rare events gets `with_one_bad_event` in its variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from degre_prod.experiments.corrections import holm
from degre_prod.experiments.cuped import adjusted_difference
from degre_prod.experiments.moments import Moments
from degre_prod.experiments.plan import Guardrail
from degre_prod.experiments.ratio import delta_variance, value_and_gradient, with_one_bad_event
from degre_prod.experiments.sequential import mixture_scale, one_sided_p_value, one_sided_width


@dataclass(frozen=True, slots=True)
class Harm:
    """Harm on the scale it is tested on (log for relative guardrails), its variance, the bound there, and τ."""

    estimate: np.ndarray
    variance: np.ndarray
    bound: float
    tau: float
    relative: bool
    worse_up: bool

    def shown(self, harm: np.ndarray) -> float:
        """As one says it: relative harms as shares of the control's value (a fall of 3 % is 0.03)."""
        if not self.relative:
            return float(harm)
        return float(np.expm1(harm) if self.worse_up else -np.expm1(-harm))


def harm_of(guardrail: Guardrail, treatment: Moments, control: Moments, *, alpha: float, power: float) -> Harm:
    """What a guardrail tests; estimates may have trailing axes like the moments."""
    up = guardrail.worse == "up"
    sign = 1 if up else -1
    if guardrail.kind == "relative":
        effect, variance = adjusted_difference(treatment, control, "relative")
        bound = float(sign * np.log1p(sign * guardrail.bound))
    elif guardrail.kind == "absolute":
        effect, _ = adjusted_difference(treatment, control, "absolute")
        _, variance = adjusted_difference(with_one_bad_event(treatment), with_one_bad_event(control), "absolute")
        bound = guardrail.bound
    else:
        effect, _ = value_and_gradient(treatment, "absolute")
        padded = with_one_bad_event(treatment)
        variance = delta_variance(padded, value_and_gradient(padded, "absolute")[1])
        bound = guardrail.bound
    tau = mixture_scale(bound, alpha, power)
    return Harm(sign * effect, variance, bound, tau, guardrail.kind == "relative", up)


def ok_p_value(harm: Harm) -> np.ndarray:
    """p-value of "harm ≥ bound": small where harm beyond the bound is ruled out."""
    return one_sided_p_value(harm.bound - harm.estimate, harm.variance, harm.tau)


def breach_p_value(harm: Harm) -> np.ndarray:
    """p-value of "harm ≤ bound": small where harm beyond the bound is shown. Uncorrected."""
    return one_sided_p_value(harm.estimate - harm.bound, harm.variance, harm.tau)


def upper_bound(harm: Harm, alpha: float) -> np.ndarray:
    """Harm is below this, at every look at once."""
    return harm.estimate + one_sided_width(harm.variance, harm.tau, alpha)


def lower_bound(harm: Harm, alpha: float) -> np.ndarray:
    """Harm is above this, at every look at once."""
    return harm.estimate - one_sided_width(harm.variance, harm.tau, alpha)


def corrected(p_values: Sequence[float], known: Sequence[bool]) -> list[float]:
    """Holm over all; what isn't known yet counts as a test with p = 1, so that the family never changes its size."""
    return holm([p if is_known else 1.0 for p, is_known in zip(p_values, known, strict=True)])
