"""Do the stages of a pipeline ever wait for a tensor that nobody sends? On paper, from what each of them posts."""

from __future__ import annotations

from collections.abc import Sequence

from gipo_mc.parallel.megatron.pretend import Exchange, Message

#: The tensors of one kind that one stage sends to a neighbour, or receives from it.
_Channel = tuple[str, int]


def problems(stages: Sequence[Sequence[Exchange]]) -> list[str]:
    """What keeps these stages from coming to their end, a sentence each; none: nothing does.

    stages: of each the exchanges in its order. A stage goes on when its neighbours have posted what belongs to all
    tensors of an exchange: a send waits for its receive, as large tensors do.
    """
    sent, received = _shapes(stages, sent=True), _shapes(stages, sent=False)
    found = []
    for channel in sorted({*sent, *received}):
        kind, stage = channel
        out, into = sent.get(channel, []), received.get(channel, [])
        to = _receiver(channel, len(stages))
        if len(out) != len(into):
            found.append(f"Stage {stage} sends {len(out)} {kind}s, and stage {to} waits for {len(into)}.")
        elif wrong := [pair for pair in zip(out, into, strict=True) if pair[0] != pair[1]]:
            found.append(f"Stage {stage} sends {kind}s of shape {wrong[0][0]}, and stage {to} expects {wrong[0][1]}.")
    return found or _stuck(stages)


def _stuck(stages: Sequence[Sequence[Exchange]]) -> list[str]:
    at = [0] * len(stages)
    posted: dict[tuple[_Channel, bool], int] = {}
    numbers: list[list[tuple[Message, int]]] = [[] for _ in stages]

    def post(stage: int) -> None:
        numbers[stage] = []
        for message in stages[stage][at[stage]]:
            key = (_channel(message, stage, len(stages)), message.sent)
            numbers[stage].append((message, posted.get(key, 0)))
            posted[key] = posted.get(key, 0) + 1

    def passed(stage: int) -> bool:
        return all(
            posted.get((_channel(message, stage, len(stages)), not message.sent), 0) > number
            for message, number in numbers[stage]
        )

    waiting = [stage for stage, exchanges in enumerate(stages) if exchanges]
    for stage in waiting:
        post(stage)
    while free := [stage for stage in waiting if passed(stage)]:
        for stage in free:
            at[stage] += 1
            if at[stage] == len(stages[stage]):
                waiting.remove(stage)
            else:
                post(stage)
    if not waiting:
        return []
    told = "; ".join(f"stage {stage} at exchange {at[stage] + 1} of {len(stages[stage])}" for stage in waiting)
    return [f"The stages wait for each other for ever: {told}."]


def _shapes(stages: Sequence[Sequence[Exchange]], *, sent: bool) -> dict[_Channel, list[tuple[int, ...]]]:
    found: dict[_Channel, list[tuple[int, ...]]] = {}
    for stage, exchanges in enumerate(stages):
        for message in (message for exchange in exchanges for message in exchange if message.sent is sent):
            found.setdefault(_channel(message, stage, len(stages)), []).append(message.shape)
    return found


def _channel(message: Message, stage: int, stages: int) -> _Channel:
    """Kind and sender of a message that `stage` sends or receives."""
    if message.sent:
        return message.kind, stage
    return message.kind, (stage + (-1 if message.kind == "activation" else 1)) % stages


def _receiver(channel: _Channel, stages: int) -> int:
    kind, sender = channel
    return (sender + (1 if kind == "activation" else -1)) % stages
