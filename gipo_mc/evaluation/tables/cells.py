"""The cells of one evaluator: which pairs each has, and its figures with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gipo_mc.evaluation.statistics.bootstrap import (
    Array,
    Draws,
    Interval,
    by_conversation,
    interval,
    ratio,
    simultaneous,
)
from gipo_mc.evaluation.statistics.length_control import Fit, fit, margins_drawn
from gipo_mc.evaluation.statistics.outcomes import GRID, SELF, Result
from gipo_mc.evaluation.statistics.sign_test import holm, sign_test
from gipo_mc.evaluation.tables.model import Cell, LeftOut, Scope, SignTest, Ties

#: Fewer pairs have no simultaneous interval, no part in the worst of several, and no length control.
LEAST_PAIRS = 30
SHARE, MARGIN = (0.0, 1.0), (-1.0, 1.0)
#: Columns that every cell sums: see `_columns`. Those of a fit come behind them.
_COUNT, _WIN, _LOSE, _MARGIN, _FIRST, _DECIDED = range(6)
_FIT = slice(6, 11)


@dataclass(frozen=True, eq=False)
class Part:
    """The pairs of one cell. used: those with an outcome; left: the others. conversation_N: number of each used pair's
    conversation among all that the bootstrap draws from. invalid_games: of all its pairs."""

    opponent: str
    scope: Scope
    label: str
    used: Sequence[Result]
    left: Sequence[Result]
    conversation_N: npt.NDArray[np.int64]
    invalid_games: int


@dataclass(frozen=True, eq=False)
class Measured:
    """A part with its sums. totals_K: over all pairs. drawn_DK: over each draw. fit: why there is none, else."""

    part: Part
    totals_K: Array
    drawn_DK: Array
    fit: Fit | str

    @property
    def conversations(self) -> int:
        return len(np.unique(self.part.conversation_N))

    def margin(self) -> tuple[float, Array]:
        """(estimate, draws)."""
        return self._ratio(_MARGIN, _COUNT, GRID)

    def margin_D(self) -> Array:
        """The margin in every draw, NaN where it holds no pair of the part."""
        count = self.drawn_DK[:, _COUNT]
        return self.drawn_DK[:, _MARGIN] / np.where(count > 0, GRID * count, np.nan)

    def net(self) -> Array:
        """[1 + D, 2] margin and pairs, summed over all pairs and over each draw."""
        sums = np.concatenate([self.totals_K[None], self.drawn_DK])
        return np.stack([sums[:, _MARGIN] / GRID, sums[:, _COUNT]], axis=1)

    def interval(self, column: int, of: int = _COUNT, bounds: tuple[float, float] = SHARE, unit: int = 1) -> Interval:
        value, drawn = self._ratio(column, of, unit)
        return interval(value, drawn, bounds, self.conversations)

    def tie(self) -> Interval:
        totals, drawn = (x[..., _COUNT] - x[..., _WIN] - x[..., _LOSE] for x in (self.totals_K, self.drawn_DK))
        value = float(totals / self.totals_K[_COUNT])
        return interval(value, ratio(drawn, self.drawn_DK[:, _COUNT]), SHARE, self.conversations)

    def _ratio(self, column: int, of: int, unit: int) -> tuple[float, Array]:
        value = float(self.totals_K[column] / (unit * self.totals_K[of])) + 0.0  # no minus before 0
        return value, ratio(self.drawn_DK[:, column], unit * self.drawn_DK[:, of]) + 0.0


def measure(parts: Sequence[Part], draws: Draws) -> list[Measured]:
    """The sums of all parts, over the same draws. Parts without a used pair are left out."""
    parts = [part for part in parts if part.used]
    fits = [_fit(part) for part in parts]
    columns = [_columns(part, found) for part, found in zip(parts, fits, strict=True)]
    if not parts:
        return []
    summed = [
        by_conversation(own, part.conversation_N, draws.conversations) for part, own in zip(parts, columns, strict=True)
    ]
    drawn = draws.sums(np.concatenate(summed, axis=1))
    ends = np.cumsum([own.shape[1] for own in columns])
    return [
        Measured(part, own.sum(axis=0), drawn[:, end - own.shape[1] : end], found)
        for part, own, end, found in zip(parts, columns, ends, fits, strict=True)
    ]


def _columns(part: Part, found: Fit | str) -> Array:
    """[N, 6 or 11] integers of each pair, exact in float64."""
    rows = [
        (1, result.outcome == 1, result.outcome == -1, result.margin, result.first_won, result.decided)
        for result in part.used
    ]
    basic = np.array(rows, dtype=np.float64)
    return basic if isinstance(found, str) else np.concatenate([basic, found.columns_N5], axis=1)


def _fit(part: Part) -> Fit | str:
    if part.scope == "group":
        return "groups are not controlled for length"
    if len(part.used) < LEAST_PAIRS:
        return f"fewer than {LEAST_PAIRS} pairs"
    margin = np.array([result.margin for result in part.used], dtype=np.float64) / GRID
    lengths = [result.ours_length - result.theirs_length for result in part.used]
    return fit(margin, np.array(lengths, dtype=np.float64))


def cells_of(measured: Sequence[Measured]) -> list[Cell]:
    """The figures of all parts of one evaluator. The sign tests of each scope are one family for Holm; a policy against
    itself belongs to none."""
    winners = [_net_winners(found) for found in measured]
    p_values = [sign_test(*counts) for counts in winners]
    adjusted: dict[int, float] = {}
    for scope in ("all", "domain"):
        places = [
            place for place, found in enumerate(measured) if found.part.scope == scope and found.part.opponent != SELF
        ]
        adjusted |= dict(zip(places, holm([p_values[place] for place in places]), strict=True))
    together = _simultaneous(measured)
    return [
        _cell(found, SignTest(*winners[place], p_values[place], adjusted.get(place)), together.get(place))
        for place, found in enumerate(measured)
    ]


def _net_winners(found: Measured) -> tuple[int, int]:
    """Conversations with a net winner: (ours, theirs)."""
    net = np.bincount(found.part.conversation_N, [result.margin for result in found.part.used])
    return int((net > 0).sum()), int((net < 0).sum())


def _simultaneous(measured: Sequence[Measured]) -> dict[int, Interval]:
    """Place -> interval, of the domains of an opponent and of its groups, where at least two have enough pairs."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, found in enumerate(measured):
        if found.part.scope != "all" and len(found.part.used) >= LEAST_PAIRS:
            families.setdefault((found.part.opponent, found.part.scope), []).append(place)
    intervals: dict[int, Interval] = {}
    for places in families.values():
        if len(places) > 1:
            family = [measured[place] for place in places]
            values = [found.margin()[0] for found in family]
            drawn = [found.margin_D() for found in family]
            own = simultaneous(values, drawn, MARGIN, [member.conversations for member in family])
            intervals |= dict(zip(places, own, strict=True))
    return intervals


def _cell(found: Measured, test: SignTest, together: Interval | None) -> Cell:
    part, used = found.part, found.part.used
    causes = Counter(result.cause for result in used if result.outcome == 0)
    controlled = None
    if isinstance(found.fit, Fit):
        drawn = margins_drawn(found.fit, found.drawn_DK[:, _FIT]) + 0.0
        drawn = drawn[np.isfinite(drawn)]
        controlled = interval(found.fit.margin + 0.0, drawn, MARGIN, found.conversations)
    return Cell(
        opponent=part.opponent,
        scope=part.scope,
        label=part.label,
        pairs=len(used),
        conversations=found.conversations,
        games=sum(result.games for result in used),
        wins=int(found.totals_K[_WIN]),
        tied=sum(causes.values()),
        losses=int(found.totals_K[_LOSE]),
        win=found.interval(_WIN),
        tie=found.tie(),
        lose=found.interval(_LOSE),
        margin=found.interval(_MARGIN, bounds=MARGIN, unit=GRID),
        simultaneous=together,
        controlled=controlled,
        not_controlled=found.fit if isinstance(found.fit, str) else "",
        sign_test=test,
        ties=Ties(causes["both"], causes["one"], causes["flipped"], causes["identical"], causes["split"]),
        first=found.interval(_FIRST, of=_DECIDED) if found.totals_K[_DECIDED] else None,
        flipped_to_first=sum(result.to_first for result in used),
        left_out=left_out(part),
        ours_length=float(np.mean([result.ours_length for result in used])),
        theirs_length=float(np.mean([result.theirs_length for result in used])),
    )


def left_out(part: Part) -> LeftOut:
    causes = Counter(result.cause for result in part.left)
    return LeftOut(part.invalid_games, causes["invalid"], causes["other order"])
