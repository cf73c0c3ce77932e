"""Import what people downloaded, and show how they voted and how far evaluators agree."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.errors import DataError
from gipo_mc.run.arguments import name, number
from gipo_mc.run.jsonl import encode, printable, write_atomically
from gipo_mc.run.terminal.waiting import waiting

if TYPE_CHECKING:
    from gipo_mc.evaluation.people.agree import Agreement
    from gipo_mc.evaluation.people.agreement import Estimate
    from gipo_mc.evaluation.people.voters import VoterReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=name, metavar="DIR", help="the evaluation that the page was made from")
    parser.add_argument("page", type=name, nargs="?", metavar="page.html", help="the page that was voted on")
    parser.add_argument(
        "files", type=name, nargs="*", metavar="votes.json", help="files that voters downloaded; none: agreement only"
    )
    parser.add_argument("--replace", action="store_true", help="put a voter's votes in the place of earlier ones")
    parser.add_argument(
        "--draws", type=number(0, 1_000_000), default=2000, help="bootstrap draws, 0: no intervals [2000]"
    )
    parser.add_argument("--seed", type=number(0, 2**31 - 1), default=1, help="of the bootstrap [1]")


def run(own: argparse.Namespace) -> int:
    """Raises GipoError."""
    from gipo_mc.evaluation.people.agree import agreement_of
    from gipo_mc.evaluation.people.key import read_key
    from gipo_mc.evaluation.people.page import page_hash
    from gipo_mc.evaluation.people.voters import voter_reports
    from gipo_mc.evaluation.people.votes import import_votes, read_votes
    from gipo_mc.evaluation.reading import Judged

    folder = Path(own.folder)
    judged = Judged(folder)
    pairs = judged.pairs
    if own.page:
        if not own.files:
            raise DataError(
                f"{own.page} comes without files of votes: name those that the voters downloaded behind it."
            )
        key = read_key(folder, page_hash(Path(own.page)))
        import_votes(folder, key, pairs, [Path(file) for file in own.files], replace=own.replace)
    votes = read_votes(folder)
    if not votes:
        raise DataError(f"{folder} holds no votes yet: name the page and the files that the voters downloaded.")
    keys = {page: read_key(folder, page) for page in {vote.page for vote in votes}}
    voters = voter_reports(votes, keys)
    with waiting("Drawing the intervals of the agreement"):
        found = agreement_of(judged.games, draws=own.draws, seed=own.seed)
    text = encode({"voters": [asdict(voter) for voter in voters], **asdict(found)})
    write_atomically(folder / "agreement.json", text + "\n")
    if own.json:
        print(text)
        return 0
    _show_voters(voters)
    _show_agreement(found)
    return 0


def _show_voters(voters: Sequence[VoterReport]) -> None:
    for voter in voters:
        print(
            f"{printable(voter.voter)}: {voter.judged} judged, {voter.skipped} skipped, {voter.missing} without an "
            f"answer; attention {voter.attention - voter.failed} of {voter.attention}; repeats {voter.same} of "
            f"{voter.repeats} alike"
            + (f", {voter.same_side} by side" if voter.same_side else "")
            + (f"; chose the left one {voter.first_side:.0%} of the time" if voter.first_side is not None else "")
            + f"; {voter.seconds:.0f} s a pair"
        )
        if voter.failed:
            failed = f"{voter.failed} attention pair{'s' * (voter.failed != 1)}"
            print(f"  warning: {failed} failed: the votes may not have been given by reading.")


def _show_agreement(found: Agreement) -> None:
    rows: list[tuple[str, int, Estimate, Estimate | None, Estimate, Estimate, Estimate]] = []
    if found.among:
        a = found.among
        rows.append((f"{len(a.people)} people", a.pairs, a.percent, None, a.kappa, a.alpha, a.ordinal_alpha))
    rows += [
        (f"{c.first} and {c.second}", c.pairs, c.percent, c.decided, c.kappa, c.alpha, c.ordinal_alpha)
        for c in found.couples
    ]
    if not rows:
        print("One voter and no judge: there is nobody to agree with.")
        return
    width = max(len(row[0]) for row in rows)
    print(f"\n{'agreement':{width}}  pairs  {'percent':22}{'without ties':22}", end="")
    print(f"{'kappa':22}{'alpha':22}ordinal alpha")
    for who, pairs, percent, decided, *others in rows:
        shares = "".join(f"{_text(each, 100):22}" for each in (percent, decided))
        kappas = "".join(f"{_text(each, 1):22}" for each in others)
        print(f"{printable(who):{width}}  {pairs:5}  {shares}{kappas}".rstrip())
    print("kappa is Fleiss' for all people, Cohen's for two; in brackets 95 % intervals by conversation.")


def _text(found: Estimate | None, scale: int) -> str:
    """Value and interval; a dash where it has none."""
    if found is None or found.value is None:
        return "-"
    digits = 1 if scale == 100 else 2
    text = f"{found.value * scale:.{digits}f}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low * scale:.{digits}f}, {found.high * scale:.{digits}f}]"
    return text
