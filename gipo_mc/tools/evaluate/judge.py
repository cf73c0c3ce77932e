"""Pair our responses with those of others to the same prompts, and have judges compare them.

Each side is a file of `gipo-mc generate --out`, or a run, a checkpoint or a Hugging Face folder, which is generated
from first. What was judged before is in the journal of --out and is not asked again.
"""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.evaluation.judge_config import (
    AnyJudge,
    OpenAIJudgeConfig,
    PythonJudgeConfig,
    RewardJudgeConfig,
    load_judge,
)
from gipo_mc.run.arguments import name, number, real, say_error, say_warning
from gipo_mc.run.jsonl import encode, printable
from gipo_mc.run.terminal.voice import tell
from gipo_mc.run.terminal.waiting import importing, waiting

if TYPE_CHECKING:
    from gipo_mc.evaluation.judges.journal import Journal
    from gipo_mc.evaluation.judges.judging import Tally
    from gipo_mc.evaluation.judges.questions import Judge
    from gipo_mc.evaluation.pairs import Pair

OURS = "ours"
#: What --json tells of each judge.
_COUNTS = ("evaluator", "total", "identical", "kept", "new", "invalid", "requests", "tokens_in", "tokens_out")
#: Prompts of judges -> the words in domains that tell that a prompt is of their kind.
_ASKED_OF = {"harmless": ("harmless",), "helpful": ("helpful",), "tldr": ("tldr", "cnndm")}
_SIDE = re.compile(r"(?P<label>[\w.+-]{1,40})=(?P<place>.+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ours", type=name, required=True, metavar="F", help="our responses, or our model")
    parser.add_argument(
        "--against",
        type=_side,
        nargs="+",
        action="extend",
        required=True,
        metavar="LABEL=F",
        help="those of each opponent",
    )
    parser.add_argument(
        "--judge", type=name, action="append", default=[], metavar="FILE", help="may be repeated [only make the pairs]"
    )
    parser.add_argument("--out", type=name, required=True, metavar="DIR", help="folder of the evaluation")
    parser.add_argument(
        "--prompts", type=number(1, 10**9), default=0, metavar="N", help="how many, drawn by seed [all]"
    )
    parser.add_argument("--seed", type=number(0, 2**31 - 1), default=1, help="of prompts and of drawn orders [1]")
    parser.add_argument("--dry-run", action="store_true", help="print calls, tokens, price and power, and ask nothing")
    parser.add_argument(
        "--expect",
        type=real(lambda value: 0 <= value <= 100, "percentage"),
        nargs=3,
        default=[40.4, 33.7, 25.9],
        metavar=("WIN", "TIE", "LOSE"),
        help="percentages whose difference the power is of [40.4 33.7 25.9]",
    )
    parser.add_argument("--config", type=name, metavar="FILE", help="configuration to generate with, for models")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="its options, such as data.evaluation=[FILE]",
    )


def run(own: argparse.Namespace) -> int:
    """Returns the exit code of the first judge that failed, or 0. Raises GipoError for what stops all of them."""
    from gipo_mc.evaluation.judges.journal import Journal
    from gipo_mc.evaluation.pairs import write_pairs
    from gipo_mc.evaluation.reading import Judged
    from gipo_mc.tools.evaluate import estimate

    if abs(sum(own.expect) - 100) > 2:  # they are rounded
        raise ConfigError(f"--expect {' '.join(f'{share:g}' for share in own.expect)}: win, tie and lose make up 100.")
    configs = _judges(own.judge)
    for config in configs:
        _check(config, dry=own.dry_run)
    pairs = _pairs(own)
    for config in configs:
        _warn_of_other_domains(config, pairs)
    if own.dry_run:
        with ExitStack() as stack:
            judges = [_make(config, own.seed, stack, dry=True) for config in configs]
            text = estimate.describe(Path(own.out), pairs, list(zip(configs, judges, strict=True)), own.expect)
        print(encode({"estimate": text.splitlines()}) if own.json else text, end="\n" if own.json else "")
        return 0
    say = tell if own.json else _say
    tallies: list[Tally] = []
    first: GipoError | None = None
    with Journal(Path(own.out)) as journal:
        write_pairs(Path(own.out), pairs, say_warning)
        say(f"{own.out}: {len(pairs)} pairs of {len({pair.prompt for pair in pairs})} prompts")
        for config in configs:
            try:
                tallies.append(_judge(config, own.seed, pairs, journal, say))
            except KeyboardInterrupt:
                raise KeyboardInterrupt("What was answered is kept: the same command asks for the rest.") from None
            except GipoError as error:
                first = first or error
                say_error(error)
                if left := Judged(Path(own.out)).unasked.get(config.name):
                    say_warning(
                        f"{config.name}: {left} comparisons have no answer yet; the same command asks for them."
                    )
    if own.json:
        judged = [{key: getattr(tally, key) for key in _COUNTS} for tally in tallies]
        print(encode({"folder": own.out, "pairs": len(pairs), "judges": judged}))
    elif first is None and configs:
        say(f"gipo-mc evaluate table {shlex.quote(own.out)}")
    return first.exit_code if first else 0


def _judge(config: AnyJudge, seed: int, pairs: Sequence[Pair], journal: Journal, say: Callable[[str], None]) -> Tally:
    from gipo_mc.evaluation.judges.judging import judge_pairs
    from gipo_mc.run.console import on_stderr

    began = time.monotonic()
    if isinstance(config, RewardJudgeConfig):
        _warn_of_trained_with(config, pairs)
    with ExitStack() as stack:
        judge = _make(config, seed, stack, dry=False)
        with on_stderr().share(config.name, 2 * len(pairs)) as advance:
            tally = judge_pairs(judge, pairs, journal, warn=say_warning, advance=advance)
    say(_summary(tally, time.monotonic() - began))
    return tally


def _warn_of_trained_with(config: RewardJudgeConfig, pairs: Sequence[Pair]) -> None:
    with importing():
        from gipo_mc.evaluation.judges.reward_judge import trained_with

    labels = {label for pair in pairs for label in (pair.ours_model, pair.theirs_model)}
    for policy in trained_with(config.model, sorted(labels)):
        say_warning(
            f"{config.name}: {policy} was trained with this reward model, {config.model}, and knows how to please it: "
            "its wins here are no evidence. Judge with another."
        )


def _warn_of_other_domains(config: AnyJudge, pairs: Sequence[Pair]) -> None:
    """A judge asks all pairs the same question, and some questions are of one kind of prompt."""
    if not isinstance(config, OpenAIJudgeConfig) or (asked := config.prompt.partition("_")[0]) not in _ASKED_OF:
        return
    domains = {pair.domain for pair in pairs if pair.domain}
    # A domain without any of the words may be of this kind: nothing tells.
    kinds = {d: {kind for kind, words in _ASKED_OF.items() if any(word in d for word in words)} for d in domains}
    if others := sorted(domain for domain, found in kinds.items() if found and asked not in found):
        say_warning(
            f"{config.name} asks by its prompt {config.prompt!r}, and there are pairs of the domains "
            f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}: set prompt in the judge's file to the one "
            "that is meant for them (helpful, harmless, tldr, or a file of your own)."
        )


def _summary(tally: Tally, seconds: float) -> str:
    parts = [f"{tally.new} verdicts of {tally.requests} requests"]
    parts += [f"{tally.kept} were in the journal"] if tally.kept else []
    parts += [f"{tally.identical} are of identical texts"] if tally.identical else []
    parts += [f"{tally.invalid} have no verdict"] if tally.invalid else []
    parts += [f"{tally.tokens_in:,} + {tally.tokens_out:,} tokens"] if tally.tokens_in else []
    return f"{tally.evaluator}: {tally.total} comparisons: {', '.join(parts)}; {seconds:.0f} s"


def _judges(files: Sequence[str]) -> list[AnyJudge]:
    """The judges, whose names differ. Raises ConfigError."""
    configs = [load_judge(file) for file in files]
    names = [config.name for config in configs]
    if twice := sorted({found for found in names if names.count(found) > 1}):
        raise ConfigError(f"Two judges are called {twice[0]}: give one of them another `name:`.")
    return configs


def _check(config: AnyJudge, *, dry: bool) -> None:
    """Is all there that the judge is made of? Found out before responses are generated, and before another judge is
    paid. Raises ConfigError, CheckpointError."""
    if isinstance(config, OpenAIJudgeConfig):
        from gipo_mc.evaluation.judges.prompts import load_prompt

        load_prompt(config.prompt)
        if not dry:
            from gipo_mc.evaluation.judges.openai_judge import OpenAIClient

            OpenAIClient(config).close()
    elif isinstance(config, PythonJudgeConfig):
        from gipo_mc.evaluation.judges.python_judge import load_function

        load_function(config.function)
    else:
        with importing():
            from gipo_mc.run.model_sources import resolve

        with waiting(f"{config.name}: looking at its model"):
            resolve(config.model, f"{config.name}: model", warn=lambda text: None)


def _make(config: AnyJudge, seed: int, stack: ExitStack, *, dry: bool) -> Judge:
    """The judge of a configuration; what it holds open is closed with `stack`."""
    if isinstance(config, OpenAIJudgeConfig):
        from gipo_mc.evaluation.judges.chat_judge import ChatJudge
        from gipo_mc.evaluation.judges.prompts import load_prompt

        client = None
        if not dry:
            from gipo_mc.evaluation.judges.openai_judge import OpenAIClient

            client = OpenAIClient(config, say_warning)
            stack.callback(client.close)
        return ChatJudge(config, load_prompt(config.prompt), client, seed)
    if isinstance(config, PythonJudgeConfig):
        from gipo_mc.evaluation.judges.python_judge import PythonJudge

        return PythonJudge(config, seed)
    with importing():
        from gipo_mc.evaluation.judges.reward_judge import RewardJudge

    with waiting(f"{config.name}: reading its model"):
        return RewardJudge(config, say_warning)


def _pairs(own: argparse.Namespace) -> list[Pair]:
    from gipo_mc.evaluation.pairs import make_pairs
    from gipo_mc.evaluation.responses import read_responses

    sides = {OURS: own.ours, **_opponents(own.against)}
    files = {label: Path(place) for label, place in sides.items() if Path(place).is_file()}
    models = {label: place for label, place in sides.items() if label not in files}
    if models:
        from gipo_mc.tools.evaluate.generated import generate, option_of

        for label, place in models.items():
            if place.endswith((".jsonl", ".json", ".gz")) and not Path(place).exists():
                raise ConfigError(f"{option_of(label)}={place}: there is no such file of gipo-mc generate --out.")

        files |= generate(models, Path(own.out), own.config, own.set, dry=own.dry_run, tell=say_warning)
    elif own.config or own.set:
        raise ConfigError("--config and --set say how to generate, and all sides are files: leave them out.")
    ours = read_responses(files[OURS])
    theirs = {label: read_responses(files[label]) for label in sides if label != OURS}
    named = {label: str(path) for label, path in files.items()}
    return make_pairs(ours, theirs, named, count=own.prompts, seed=own.seed)


def _opponents(sides: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, place in sides:
        if label in found or label == OURS:
            raise ConfigError(f"--against {label}={place}: the label {label} is taken. Give each opponent its own.")
        found[label] = place
    return found


def _side(text: str) -> tuple[str, str]:
    found = _SIDE.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not LABEL=F, such as sft=sft.jsonl")
    return found["label"], name(found["place"])


def _say(text: str) -> None:
    print(printable(text), flush=True)
