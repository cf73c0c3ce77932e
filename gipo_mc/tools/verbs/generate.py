"""Sample from a checkpoint: a Hugging Face folder, a run, or one checkpoint of a run.

    gipo-mc generate model.policy=runs/gi_ppo --prompt "Say something kind."
    torchrun --nproc-per-node 2 -m gipo_mc generate model.policy=FOLDER parallel.tensor=2 data.evaluation=[test.jsonl]

Temperature, top-p, top-k, length and stop strings are those of the rollout section; run.seed makes it repeatable. With
data.chat_template=true each --prompt is a user's message, rendered by the tokenizer's chat template.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.config import Config
from gipo_mc.run.arguments import Parser, name, say_warning
from gipo_mc.run.command import command_parser, run_parsed
from gipo_mc.run.jsonl import encode, printable
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.voice import is_first_rank, tell
from gipo_mc.run.terminal.waiting import importing
from gipo_mc.tools.output import check_file

if TYPE_CHECKING:
    from gipo_mc.evaluation.responses import Response


def parsers() -> dict[str, Parser]:
    parser = command_parser(str(__doc__), "generate", reports=True)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="text to continue, as it stands, with the turns of a plain dialogue ($'\\n\\nHuman: Hi\\n\\nAssistant:'); "
        "may be repeated [prompts of data.evaluation]",
    )
    parser.add_argument("--greedy", action="store_true", help="the most probable token each time [sampling]")
    parser.add_argument("--out", type=name, metavar="FILE", help="write JSON lines there [text on the screen]")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _generate(parsers()[""].parse_intermixed_args(words)))


def _generate(own: argparse.Namespace) -> int:
    from gipo_mc.evaluation.responses import is_response
    from gipo_mc.tools.asked import check_asked

    def check(config: Config) -> None:
        check_asked(config, own.prompt)
        if own.out:
            check_file(Path(own.out), is_response)

    def work(config: Config) -> None:
        with importing():
            from gipo_mc.parallel.collectives import on_main
            from gipo_mc.run.console import on_stderr
            from gipo_mc.tools.respond import respond

        console = on_stderr(enabled=is_first_rank())
        with console.share("responses") as advance:
            responses = respond(config, own.prompt, greedy=own.greedy, on_step=advance, tell=say_warning)
        on_main(lambda: _show(responses, Path(own.out) if own.out else None, own.json))

    return run_parsed(own, work, command="generate", check=check)


def _show(responses: Sequence[Response], out: Path | None, as_json: bool) -> None:
    if out:
        from gipo_mc.evaluation.responses import write_responses

        write_responses(out, responses)
        if not as_json:
            tell(f"{len(responses)} response{'s' * (len(responses) != 1)} written to {out}.")
    if as_json:
        print(
            encode({"out": str(out), "count": len(responses)} if out else {"responses": list(map(asdict, responses))})
        )
    if out or as_json:
        return
    for response in responses:
        print(f"--- {printable(response.domain) or 'prompt'}, {response.tokens} tokens, {_end(response)}")
        for line in f"{response.prompt}[{response.response}]".split("\n"):
            print(printable(line))


def _end(response: Response) -> str:
    """How a response ended: its text is without the token that ends it, which counts as one of its tokens."""
    if response.truncated:
        return "cut at rollout.max_new_tokens before an end"
    return "the last of them EOS or a stop string" if response.sampling.get("stop") else "the last of them EOS"
