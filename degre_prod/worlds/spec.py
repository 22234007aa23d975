"""The constants of every world, by name and size. All of a world's behaviour follows from one `WorldSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from degre_prod.errors import ConfigurationError

WORLDS: Final = ("none", "substitutes", "exit", "hooks", "mixed", "saturated")
SIZES: Final = ("small", "large")
LOGGING_TEMPERATURE: Final = 0.5  # τ of the Plackett–Luce log on the upstream score


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """One world in one size; logits are natural, probabilities per slot.

    Base logit of item v for user u: `base` + .8 u·z + .4 quality − `hook_penalty`·hook. At slot t (from 0) it loses
    `position`·t. An earlier item w adds −`substitution`·s + hook_w (1 − hook_v)(`lift` + `lift_similar`·s), where s is
    max(z_v·z_w, 0). After a slot without a click the user leaves with probability `leave_low` + (`leave_high` −
    `leave_low`)·boredom.
    """

    world: str
    size: str
    candidates: int
    list_length: int
    base: float
    position: float
    hook_share: float
    hook_penalty: float
    substitution: float = 0.0
    lift: float = 0.0
    lift_similar: float = 0.0
    leave_low: float = 0.0
    leave_high: float = 0.0
    saturated: bool = False
    taste_weight: float = 0.8
    quality_weight: float = 0.4
    upstream_noise: float = 0.5

    @property
    def has_hooks(self) -> bool:
        """Whether hook items lift later ones."""
        return self.lift > 0 or self.lift_similar > 0

    @property
    def has_exit(self) -> bool:
        """Whether users leave before the end of the list."""
        return self.leave_high > 0


@dataclass(frozen=True, slots=True)
class _Size:
    """One row of the method's table of constants."""

    n: int
    L: int
    b0: float
    pos: float
    sub: float
    xsub: float
    hlo: float
    hhi: float
    hp: float
    pen: float
    l0: float
    l1: float
    msub: float
    mpen: float
    mh: float
    train: int


_TABLE: Final = {
    "small": _Size(8, 4, -1.5, 0.25, 1.5, 0.8, 0.05, 0.6, 0.2, 1.2, 0.4, 1.8, 1.0, 0.8, 0.2, train=40_000),
    "large": _Size(50, 10, -2.2, 0.1, 0.7, 0.4, 0.02, 0.35, 0.12, 1.2, 0.2, 0.9, 0.4, 0.8, 0.1, train=30_000),
}


def _effects(world: str, c: _Size) -> dict[str, Any]:
    """What sets a world apart from `none`."""
    mixed = {
        "substitution": c.msub,
        "lift": c.l0,
        "lift_similar": c.l1,
        "leave_high": c.mh,
        "hook_penalty": c.mpen,
    }
    return {
        "none": {},
        "substitutes": {"substitution": c.sub},
        "exit": {"substitution": c.xsub, "leave_low": c.hlo, "leave_high": c.hhi},
        "hooks": {"lift": c.l0, "lift_similar": c.l1},
        "mixed": mixed,
        "saturated": {**mixed, "saturated": True},
    }[world]


def world_spec(world: str, size: str) -> WorldSpec:
    """The constants of a world; raises ConfigurationError naming the valid worlds and sizes."""
    if world not in WORLDS:
        raise ConfigurationError(f"no world {world!r}; there are {', '.join(WORLDS)}")
    if size not in SIZES:
        raise ConfigurationError(f"no size {size!r}; there are {', '.join(SIZES)}")
    c = _TABLE[size]
    common: dict[str, Any] = {
        "candidates": c.n,
        "list_length": c.L,
        "base": c.b0,
        "position": c.pos,
        "hook_share": c.hp,
        "hook_penalty": c.pen,
    }
    return WorldSpec(world=world, size=size, **(common | _effects(world, c)))


def training_requests(size: str) -> int:
    """How many training requests the method's figures were made with."""
    return _TABLE[size].train
