from gipo_mc.report.meanings import SECTIONS, meaning


def test_a_metric_has_one_meaning_and_an_unknown_one_has_none() -> None:
    for name, text in {
        "reward/p01": "quantiles of the batch",
        "reward/domain/tldr/news": "mean of a domain",
        "group/3/mass": "share of the responses (pairs) that the group holds",
        "eval/accuracy": "share of pairs whose chosen response scores higher; a tie is half",
        "critic/lr": "learning rate of the last optimizer step",
        "gold/kurtosis/hard": "the same in a domain",
    }.items():
        found = meaning(name)
        assert found is not None and found.text == text, name
    for name in ("reward", "eval/reward"):
        assert meaning(name).unit == "units of the reward"  # type: ignore[union-attr]
    for name in ("reward/p02", "xreward/mean", "reward/means", "group/x/y", "policy"):
        assert meaning(name) is None, name


def test_units_and_texts_are_there() -> None:
    lines = [line for section in SECTIONS.values() for line in section]
    assert len(lines) > 60
    for line in lines:
        assert line.text and "|" not in line.text + line.unit, line.name
