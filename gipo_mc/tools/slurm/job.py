"""The batch script of a job, made of train.sbatch beside this, and what may be wrong with what it asks for."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from gipo_mc.errors import ConfigError
from gipo_mc.tools.commands import for_torchrun

#: Options of sbatch that the script has, by the letter that they have, too.
_SHORT = {"G": "gpus", "J": "job-name", "N": "nodes", "c": "cpus-per-task", "o": "output"}
#: What else asks for GPUs, in the place of --gpus-per-node; --gres where it is of GPUs.
_GPUS = ("gpus", "gpus-per-task", "gpus-per-socket")
#: The script saves after these signals, which reach its own shell alone.
_SIGNAL = re.compile(r"B:(?:SIG)?(?:USR1|TERM|10|15)@(\d+)")
#: Seconds that it takes for itself between the signal and the end, and the least that is of use.
MARGIN, LEAST_LEAD = 20, 30
LEAD = 120


@dataclass(frozen=True)
class Job:
    """What a job is to start. words: of the trainer, behind torchrun. runs: the folder of runs. gpus: are its ranks on
    GPUs? says: one line on it."""

    run: str
    words: tuple[str, ...]
    runs: str
    nodes: int
    ranks: int
    gpus: bool
    says: str


def batch_script(job: Job, more: Sequence[str] = ()) -> str:
    """The script of a job, of the template that scripts/slurm/train.sbatch is.

    more: options of sbatch, each in place of the script's own of that name; any that asks for GPUs in place of
    --gpus-per-node. Raises ConfigError of a --signal after which the script would not save.
    """
    lead_of(more)
    template = files("gipo_mc.tools").joinpath("slurm", "train.sbatch").read_text(encoding="utf-8")
    variables, directives, body = _parts(template)
    asks = f"--gpus-per-node={job.ranks}" if job.gpus else f"--cpus-per-task={job.ranks}"
    own = [f"--job-name={_safe(job.run)}", f"--nodes={job.nodes}", asks]
    given = {replaced for option in more for replaced in _replaced(option)}
    kept = [line for line in directives.splitlines() if _name(line.split()[1]) not in {*map(_name, own), *given}]
    asked = [f"#SBATCH {option}" for option in (*(one for one in own if _name(one) not in given), *more)]
    python, folder = shlex.quote(sys.executable), shlex.quote(job.runs)
    settings = [
        f"set -- {shlex.join([job.run, *for_torchrun(job.words)])}",
        f"export RANKS=${{RANKS:-{job.ranks}}} RUNS=${{RUNS:-{folder}}} PYTHON=${{PYTHON:-{python}}}",
    ]
    head = f"#!/bin/bash\n# {job.says} Written by `gipo-mc launch`; submit it with sbatch.\n#\n"
    # The words are set above: a usage would name another script.
    body = re.sub(r"\$\{1:\?usage[^}]*\}", "$1", body)
    return "".join([head, variables, *(f"{line}\n" for line in [*kept, *asked, "", *settings]), body])


def lead_of(more: Sequence[str]) -> int:
    """Seconds from the signal to the job's end, with these options of sbatch. Raises ConfigError where the script would
    not save after it."""
    given = [_value(option) for option in more if _name(option) == "signal"]
    if not given:
        return LEAD
    found = _SIGNAL.fullmatch(given[-1])
    if not found or int(found[1]) < LEAST_LEAD:
        raise ConfigError(
            f"--sbatch=--signal={given[-1]}: the script saves after SIGUSR1 or SIGTERM to its own shell, at least "
            f"{LEAST_LEAD} seconds before the end: write --sbatch=--signal=B:USR1@SECONDS."
        )
    return int(found[1])


def notes(job: Job, more: Sequence[str]) -> Iterator[str]:
    """A sentence on each thing that a job with these options may lack."""
    given = {_name(option) for option in more}
    if "exclusive" in given and not given & {"mem", "mem-per-cpu", "mem-per-gpu"}:
        yield (
            "--exclusive gives a job all cores of its nodes, and no more memory than it asks for: add "
            "--sbatch=--mem=0, which is all of it."
        )
    elif job.gpus and not given & {"exclusive", "cpus-per-task", "cpus-per-gpu"}:
        yield (
            "The script asks for GPUs alone, and what else a job gets is the cluster's choice, often one core and a "
            "little memory: add --sbatch=--exclusive --sbatch=--mem=0, or --sbatch=--cpus-per-task=N and "
            "--sbatch=--mem=SIZE."
        )


def _safe(run: str) -> str:
    """The name of a run as that of a job, of which files are named."""
    return re.sub(r"[^\w.-]+", "_", run, flags=re.ASCII)


def _replaced(option: str) -> set[str]:
    """The names of the script's own options that this one takes the place of."""
    name = _name(option)
    gpus = name in _GPUS or (name == "gres" and any(part.startswith("gpu") for part in _value(option).split(",")))
    return {name, "gpus-per-node"} if gpus else {name}


def _name(option: str) -> str:
    """The long name of an option of sbatch."""
    if option.startswith("--"):
        return option[2:].split("=")[0].split()[0]
    return _SHORT.get(option[1], option[1])


def _value(option: str) -> str:
    """What an option of sbatch is given; "" for nothing."""
    if not option.startswith("--"):
        return option[2:].strip().lstrip("=")
    return "".join(re.split(r"[=\s]+", option, maxsplit=1)[1:]).strip()


def _parts(template: str) -> tuple[str, str, str]:
    """(what it says of its variables, the lines for sbatch, the rest) of the template."""
    start, first = template.index("# Variables"), template.index("#SBATCH")
    body = template.index("\n\n", first)
    return template[start:first], template[first : body + 1], template[body + 1 :]
