"""What a judgement would take: requests, tokens, price, and the chance that it finds a difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gipo_mc.evaluation.judge_config import AnyJudge, OpenAIJudgeConfig
from gipo_mc.evaluation.judges.chat_judge import TRIES
from gipo_mc.evaluation.judges.journal import Entry, Known, read_entries
from gipo_mc.evaluation.judges.judging import to_ask
from gipo_mc.evaluation.judges.questions import Judge, Question
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.run.jsonl import printable

#: Characters a token, of English text in the tokenizers of the large models.
CHARACTERS = 4


def describe(
    out: Path, pairs: Sequence[Pair], judges: Sequence[tuple[AnyJudge, Judge]], expected: Sequence[float]
) -> str:
    """The estimate in lines. expected: win, tie, lose in percent. Raises DataError where the journal is damaged."""
    entries = read_entries(out)
    opponents = list(dict.fromkeys(pair.opponent for pair in pairs))
    lines = [f"{len(pairs)} pairs: {len(pairs) // max(1, len(opponents))} prompts against {', '.join(opponents)}"]
    for config, judge in judges:
        lines += ["", *_judge_lines(config, judge, pairs, entries)]
    return "\n".join(map(printable, [*lines, "", *_power_lines(pairs, len(opponents), expected)])) + "\n"


def _judge_lines(config: AnyJudge, judge: Judge, pairs: Sequence[Pair], entries: Sequence[Entry]) -> list[str]:
    found, _, tally = to_ask(judge, pairs, Known(entries))
    setup = judge.setup
    title = ", ".join(filter(None, (setup.kind, setup.model, setup.prompt and f"prompt {setup.prompt}")))
    orders = "both orders" if setup.orders == "both" else "one order each, drawn by seed"
    if not setup.sees_order:
        orders = "no order"
    lines = [f"{setup.evaluator} ({title}): {tally.total} comparisons, {orders}"]
    lines.append(
        f"  requests  {len(found)}; {tally.kept} are in the journal, {tally.identical} are of identical texts"
        + (f"; each may be asked {TRIES} times" if isinstance(config, OpenAIJudgeConfig) else "")
    )
    if isinstance(config, OpenAIJudgeConfig):
        lines += _cost_lines(config, judge, found, [e for e in entries if e.setup == setup.setup])
    return lines


def _cost_lines(
    config: OpenAIJudgeConfig, judge: Judge, found: Sequence[Question], known: Sequence[Entry]
) -> list[str]:
    counted = [
        entry.usage["completion_tokens"] for entry in known if entry.usage and "completion_tokens" in entry.usage
    ]
    characters = sum(len(m["content"]) for q in found for m in judge.request(q.shown)["messages"])
    tokens_in, most = characters // CHARACTERS, len(found) * config.max_tokens
    likely = len(found) * sum(counted) // len(counted) if counted else None
    said = f", about {likely:,} by the {len(counted)} answers in the journal" if likely is not None else ""
    lines = [f"  tokens    about {tokens_in:,} in ({CHARACTERS} characters each), at most {most:,} out{said}"]
    if config.price_input is None or config.price_output is None:
        return [*lines, "  price     not known: set price_input and price_output, in dollars a million tokens"]
    cost_in, cost_out = tokens_in * config.price_input / 1e6, most * config.price_output / 1e6
    price = f"  price     about ${cost_in:,.2f} + at most ${cost_out:,.2f}"
    if likely is not None:
        price += f", in all about ${cost_in + likely * config.price_output / 1e6:,.2f}"
    return [*lines, price]


def _power_lines(pairs: Sequence[Pair], opponents: int, expected: Sequence[float]) -> list[str]:
    from gipo_mc.evaluation.statistics.power import pairs_needed, power

    count = len({pair.conversation for pair in pairs})
    win, tie, lose = (value / 100 for value in expected)
    shares = "/".join(f"{value:g}" for value in expected)
    found = power(count, win, tie, lose)
    line = f"power: a difference such as {shares} % (win/tie/lose) shows at level 0.05 in {count} conversations with "
    line += f"probability {found:.2f}"
    if opponents > 1:
        line += f", at 0.05/{opponents}, Holm's strictest, with {power(count, win, tie, lose, 0.05 / opponents):.2f}"
    needed = pairs_needed(win, tie, lose)
    return [line, f"       probability 0.80 takes {needed:,} conversations" if needed else "       nothing can show"]
