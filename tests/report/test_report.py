"""The report: one safe file that shows what is there, compares runs, and says in words what went wrong."""

import json
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gipo_mc.errors import DataError, StorageError
from gipo_mc.report import panels, plots, summary
from gipo_mc.report.report import build_report, save_charts
from gipo_mc.report.runs import load_run, load_runs
from tests.report.fake_runs import rl_run, supervised_run
from tests.scripts import run_script

CONTRACT = {
    "reward": ("mean", "std", "domain/easy"),
    "group": ("0/mass", "0/reward", "0/objective", "0/kl", "variance", "entropy"),
    "kl": ("mean", "weighted"),
    "policy": ("loss", "clip_fraction", "entropy", "grad_norm", "ratio_max"),
    "critic": ("loss", "explained_variance", "grad_norm"),
    "response": ("length", "truncated"),
    "time": (*panels.PHASES, "total"),
    "throughput": ("tokens_per_second",),
    "gold": ("mean", "domain/easy"),
}


class Page(HTMLParser):
    """Tags and attributes of a page, its text, and whether every element was closed."""

    VOID = ("meta", "br", "path", "use", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h4":
            self.titles.append(data)


def page_of(runs, out) -> Page:
    return Page(build_report(runs, out).read_text(encoding="utf-8"))


def write_run(path: Path, rows, status=None, config="") -> Path:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status:
        (path / "run_status.json").write_text(json.dumps(status))
    if config:
        (path / "config.yaml").write_text(config)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "gi_ppo": rl_run(root, "gi_ppo", "gi_ppo", 40),
        "ppo": rl_run(root, "ppo", "ppo", 30, seed=3),
        "hacked": rl_run(root, "hacked", "ppo_no_kl", 12),
        "plain": rl_run(root, "plain", "gi_ppo", 2, gold=False),
        "sft": supervised_run(root, "sft", "train_sft", 20),
        "reward": supervised_run(root, "reward", "train_reward", 20),
        "dpo": supervised_run(root, "dpo", "train_dpo", 20),
    }


# --- the file ----------------------------------------------------------------------------------------------------


def test_the_file_needs_nothing_else(runs, tmp_path):
    page = page_of([runs["gi_ppo"]], tmp_path / "r.html")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "img", "base")
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert value.startswith("#"), (tag, name, value)
            assert not name.startswith("on")
            assert "url(" not in (value or "").replace("url(#", "")


def test_links_inside_the_page_lead_somewhere(runs, tmp_path):
    page = page_of([runs["sft"], runs["ppo"], runs["gi_ppo"]], tmp_path / "r.html")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert len(links) > 8 and set(links) <= ids


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    first = build_report([runs["plain"]], tmp_path / "a.html").read_bytes()
    assert build_report([runs["plain"]], tmp_path / "b.html").read_bytes() == first


def test_one_run_shows_curves_groups_domains_distribution_samples_and_configuration(runs, tmp_path):
    page = page_of([runs["gi_ppo"]], tmp_path / "r.html")
    for title in (
        "Mean reward", "Reward by domain", "Gold reward by domain", "KL to the reference", "Mass", "Reward by group",
        "Objective by group", "KL by group", "Variance between groups", "Classifier entropy", "Policy loss",
        "Critic loss", "Clipped tokens", "Policy entropy", "Response length", "Explained variance of the critic",
        "Reward in domain hard", "Where the time goes",
    ):  # fmt: skip
        assert title in page.titles, title
    for text in (
        "GI-PPO", "TP2 × PP2 × DP1 on 4 ranks", "iterations 1 to 4", "iterations 37 to 40", "group 1",
        "behaviour logprob",
        "Configuration of gi_ppo", "kl_estimator: k1", "g_high changed from group 1 to group 0.",
    ):  # fmt: skip
        assert text in page.text, text
    assert sum(tag == "svg" for tag, _ in page.tags) == len(page.titles)


def test_what_was_not_logged_is_left_out(runs, tmp_path):
    page = page_of([runs["plain"]], tmp_path / "r.html")
    assert "Gold" not in page.text and "gold" not in page.text
    page = page_of([runs["sft"]], tmp_path / "s.html")
    assert page.titles[:1] == ["Loss"] and "Accuracy" not in page.titles and "Mass" not in page.titles
    assert "Samples" not in page.text and "Reward distribution" not in page.text


def test_supervised_runs_have_their_report(runs, tmp_path):
    page = page_of([runs["reward"]], tmp_path / "r.html")
    assert {"Loss", "Accuracy", "Gradient norm", "Learning rate"} <= set(page.titles)
    assert "chance" in page.text and "optimizer step" in page.text and "held-out accuracy rose" in page.text
    assert "Margin" in page.titles and "Implicit rewards" not in page.titles
    page = page_of([runs["dpo"]], tmp_path / "d.html")
    wanted = {"Loss", "Accuracy", "Margin", "Implicit rewards", "Log-probs of the responses"}
    assert wanted <= set(page.titles) and not any(title.startswith("Held-out") for title in page.titles)
    assert "Direct preference optimization" in page.text and "chance" in page.text and "no preference" in page.text
    assert "Everything else" not in page.text


def test_the_loss_of_ipo_is_not_in_nats(tmp_path):
    for loss in ("dpo", "ipo"):
        path = write_run(
            tmp_path / loss, [{"step": 1, "loss": 25.0}], {"command": "train_dpo"}, f"dpo: {{loss: {loss}}}"
        )
        build_report([path], tmp_path / f"{loss}.html")
        html = (tmp_path / f"{loss}.html").read_text()
        chart = html[html.index("<h4>Loss</h4>") :]
        assert (">nats<" in chart[: chart.index("</figure>")]) == (loss == "dpo")


def test_runs_of_one_kind_share_axes_and_kinds_do_not(runs, tmp_path):
    page = page_of([runs["sft"], runs["reward"], runs["ppo"], runs["gi_ppo"]], tmp_path / "r.html")
    for heading in ("Supervised fine-tuning", "Reward model", "Reinforcement learning", "Side by side"):
        assert heading in page.text
    assert page.titles.count("Mean reward") == 1 and page.titles.count("Loss") == 2
    assert {"Reward: easy", "Reward: hard", "Mass: gi_ppo", "Reward: ppo"} <= set(page.titles)
    assert "Mass: ppo" not in page.titles
    html = (tmp_path / "r.html").read_text()
    mean = html[html.index("<h4>Mean reward</h4>") :]
    mean = mean[: mean.index("</figure>")]
    for colour, name in zip(plots.RUN_COLOURS, ("ppo", "gi_ppo")):
        assert colour.lower() in mean and f">{name}</text>" in mean


def test_every_metric_of_the_contract_has_a_chart_of_its_own(tmp_path):
    names = [f"{prefix}/{name}" for prefix, rest in CONTRACT.items() for name in rest]
    path = write_run(tmp_path / "run", [{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)])
    sections = panels.sections([load_run(path)])
    assert [section.title for section in sections if section.folded] == []


def test_a_metric_nobody_foresaw_is_still_shown(tmp_path):
    row = {"step": 1, "reward/mean": 1.0, "zebra": 2.0, "odd/domain/a": 1.0, "odd/domain/b": 2.0, "group/0/odd": 1.0}
    (section,) = [s for s in panels.sections([load_run(write_run(tmp_path / "run", [row]))]) if s.folded]
    assert [panel.title for panel in section.panels] == ["group/*/odd", "odd/domain/*", "zebra"]


# --- text of others ----------------------------------------------------------------------------------------------


def test_text_from_data_stays_text(tmp_path):
    evil = "</text></svg><script>alert(1)</script>"
    path = write_run(
        tmp_path / "run",
        [{"step": s, "reward/mean": 1.0, f"reward/domain/{evil}": 1.0, "reward/domain/$x_{": 2.0} for s in (1, 2)],
        {"state": "failed", "exit_code": 5, "message": evil, "command": "train_gi_ppo"},
        f"run: {{name: '{evil}'}}",
    )
    (path / "about.json").write_text(json.dumps([[evil, evil], [evil, evil]]))
    (path / "warnings.jsonl").write_text(json.dumps({"step": 1, "text": evil}) + "\n")
    (path / "distributions.jsonl").write_text(json.dumps({"step": 1, "name": evil, "values": [1.0]}) + "\n")
    sample = {"step": 1, "prompt": evil, "response": "a\x1b[31m\u202eb\nc", "domain": evil, "reward": 1.0}
    (path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = page_of([path], tmp_path / "r.html")
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.text.count("<script>alert(1)</script>") >= 6
    html = (tmp_path / "r.html").read_text()
    assert "\x1b" not in html and "\u202e" not in html and "$x_{" in html
    assert "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\nc" in html


def test_long_texts_are_cut_where_it_matters_least(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    sample = {"step": 1, "prompt": "a" * 5000 + "the question?", "response": "the answer" + "b" * 5000}
    (path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (shown,) = summary.chosen_samples(load_run(path))
    assert shown.prompt.startswith("…aaa") and shown.prompt.endswith("the question?") and len(shown.prompt) == 601
    assert shown.response.startswith("the answer") and shown.response.endswith("b…") and len(shown.response) == 901


def test_a_single_domain_is_named_in_the_title(tmp_path):
    row = {"step": 1, "reward/mean": 1.0, "reward/domain/tl;dr/news": 1.0}
    assert "Reward: tl;dr/news" in page_of([write_run(tmp_path / "run", [row])], tmp_path / "r.html").titles


# --- numbers and words -------------------------------------------------------------------------------------------


def test_first_and_last_are_means_over_a_tenth(tmp_path):
    rows = [{"step": s, "reward/mean": float(s), **({"eval/x": float(s)} if s % 10 == 0 else {})} for s in range(1, 41)]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.first("reward/mean") == np.mean([1, 2, 3, 4]) and run.last("reward/mean") == np.mean([37, 38, 39, 40])
    assert (run.first("eval/x"), run.last("eval/x")) == (10.0, 40.0)
    assert run.first("absent") is None
    assert "the mean reward rose from 2.50 to 38.5" in summary.headline(run)


def test_the_comparison_marks_the_best_and_prices_group_invariance(tmp_path):
    def row(reward, easy, hard, seconds):
        return [{"step": 1, "reward/mean": reward, "gold/mean": reward / 2, "gold/domain/easy": easy,
                 "gold/domain/hard": hard, "kl/mean": 1.0, "time/total": seconds}]  # fmt: skip

    ppo = write_run(tmp_path / "ppo", row(1.0, 0.9, 0.1, 2.0), config="algorithm: {name: ppo}")
    gi = write_run(tmp_path / "gi", row(0.8, 0.7, 0.4, 2.1), config="algorithm: {name: gi_ppo}")
    table = summary.comparison(load_runs([ppo, gi]))
    assert table.columns == [
        "Run", "What", "Iterations", "Reward", "Gold", "Gold: easy", "Gold: hard", "KL", "Time per iteration (median)",
    ]  # fmt: skip
    assert table.rows == [
        ["ppo", "PPO", "1", "1.00", "0.500", "0.900", "0.100", "1.00", "2.00 s"],
        ["gi", "GI-PPO", "1", "0.800", "0.400", "0.700", "0.400", "1.00", "2.10 s (+5 % vs PPO)"],
    ]
    assert table.best == {(0, 3), (0, 4), (0, 5), (1, 6)}
    assert summary.worst_domain(load_run(gi)) == ("hard", 0.4)


def test_what_went_wrong_is_said(tmp_path):
    rows = [
        {"step": s, "reward/mean": s / 10, "gold/mean": -s / 10, "response/truncated": 0.9, "policy/clip_fraction": 0.5,
         "critic/explained_variance": -0.2, "policy/loss": None if s in (3, 4) else 0.1}
        for s in range(1, 11)
    ]  # fmt: skip
    status = {"state": "failed", "exit_code": 5, "message": "Three steps in a row were skipped."}
    path = write_run(tmp_path / "run", rows, status)
    warnings = [{"step": s, "text": f"Group 1 holds 0.0{s} of the mass."} for s in (7, 8)]
    (path / "warnings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in warnings))
    said = summary.notices(load_run(path))
    assert ("bad", "The run failed with exit code 5. Three steps in a row were skipped.") in said
    assert ("bad", "policy/loss was NaN or infinite at steps 3, 4.") in said
    assert ("warn", "Group 1 holds 0.08 of the mass. (steps 7, 8)") in said
    text = " ".join(sentence for _, sentence in said)
    for words in ("hacking", "90% of the responses were cut", "50% of the tokens were clipped", "raise critic.lr"):
        assert words in text


def test_a_healthy_run_has_no_notices(runs):
    assert summary.notices(load_run(runs["ppo"])) == []


def test_hacking_is_seen_in_the_run_that_hacks(runs):
    assert any("hacking" in text for _, text in summary.notices(load_run(runs["hacked"])))


def test_a_gold_reward_that_only_wavers_is_not_called_hacking(tmp_path):
    gold = (0.30, 0.26, 0.33, 0.27, 0.31, 0.28)
    rows = [{"step": s, "reward/mean": s / 10, "gold/mean": value} for s, value in enumerate(gold, start=1)]
    assert summary.notices(load_run(write_run(tmp_path / "run", rows))) == []


def test_samples_are_the_best_and_the_worst_of_the_ends(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    rows = [
        {"step": step, "prompt": "p", "response": str(reward), "reward": reward, "domain": domain}
        for step in (1, 5, 9)
        for domain in ("easy", "hard", "other")
        for reward in (0.2, None, 0.9, 0.5)
    ]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = summary.chosen_samples(load_run(path))
    assert [(s.step, s.domain, s.why, s.reward) for s in shown[:3]] == [
        (1, "easy", "best", "0.900"), (1, "easy", "worst", "–"), (1, "hard", "best", "0.900")
    ]  # fmt: skip
    assert len(shown) == 2 * 3 * 2 and {s.step for s in shown} == {1, 9}


def test_phases_add_up_to_the_total(runs):
    run = load_run(runs["gi_ppo"])
    seconds = panels.phase_seconds(run)
    assert list(seconds) == [*panels.PHASES, "other"]
    assert sum(seconds.values()) == pytest.approx(run.values("time/total").mean())
    assert seconds["other"] == pytest.approx(0.1)


# --- damage ------------------------------------------------------------------------------------------------------


def test_a_damaged_line_is_named(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward/mean": "high"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: reward/mean must be a number, it is 'high'"):
        build_report([path], tmp_path / "r.html")
    (path / "metrics.jsonl").write_text('{"step": 1}\n{"step": }\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        build_report([path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_crash_in_the_last_line_is_tolerated_and_said(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
    assert "metrics.jsonl:2: the last line is incomplete" in page_of([path], tmp_path / "r.html").text


def test_damaged_side_files_are_said_or_named(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}], config="a: [")
    (path / "about.json").write_text("[1]")
    text = page_of([path], tmp_path / "r.html").text
    assert "config.yaml cannot be read" in text and "about.json cannot be read" in text
    (path / "distributions.jsonl").write_text('{"step": 1, "name": "reward", "values": "x"}\n')
    with pytest.raises(DataError, match=r"distributions\.jsonl: step 1: not a distribution"):
        build_report([path], tmp_path / "r.html")


def test_a_step_logged_twice_is_shown_once_and_said(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.steps.tolist() == [1, 2] and run.series["loss"].tolist() == [1.0, 3.0]
    assert "step 2 was logged twice" in run.notes[0]


def test_no_run_empty_run_run_named_twice(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        build_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(DataError, match="at least one"):
        build_report([], tmp_path / "r.html")
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(DataError, match="holds no iteration yet"):
        build_report([empty], tmp_path / "r.html")
    path = write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    with pytest.raises(DataError, match="named twice"):
        build_report([path, tmp_path / "empty" / ".." / "run"], tmp_path / "r.html")


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / seed / "ppo", [{"step": 1, "loss": 1.0}]) for seed in ("seed1", "seed2")]
    assert [run.name for run in load_runs(paths)] == ["seed1/ppo", "seed2/ppo"]


@pytest.mark.parametrize("value", [0.0, 1e30, -1e-30, None])
def test_extreme_values_still_make_a_report(tmp_path, value):
    rows = [{"step": step, "reward/mean": value, "loss": 1.0, "kl/mean": value} for step in (1, 2, 3)]
    path = write_run(tmp_path / "run", rows)
    (path / "distributions.jsonl").write_text(
        json.dumps({"step": 1, "name": "reward", "values": [value or 0.0]}) + "\n"
    )
    page_of([path], tmp_path / "r.html")


# --- drawing -----------------------------------------------------------------------------------------------------


def test_smoothing_keeps_constants_and_straight_lines():
    np.testing.assert_allclose(plots.smoothed(np.full(50, 3.0)), 3.0, rtol=1e-12)
    line = np.arange(100.0)
    np.testing.assert_allclose(plots.smoothed(line)[10:-10], line[10:-10], rtol=1e-12)
    assert len(plots.smoothed(np.array([1.0]))) == 1


def test_a_schedule_is_drawn_as_it_is_and_noise_is_smoothed():
    schedule = np.concatenate([np.linspace(0, 1, 10), np.linspace(1, 0, 90)])
    assert not plots.noisy(schedule)
    assert plots.noisy(np.random.default_rng(1).normal(size=100) + np.linspace(0, 5, 100))
    assert not plots.noisy(np.full(100, 2.0))


def test_end_labels_do_not_overlap():
    x = np.arange(3.0)
    curves = [plots.Curve(f"name{i}", x, np.full(3, 1.0 + i * 1e-3), plots.RUN_COLOURS[i]) for i in range(5)]
    curves.append(plots.Curve("far", x, np.full(3, 5.0), plots.RUN_COLOURS[5]))
    svg = plots.line_chart(curves, x_label="iteration", y_label="y")
    heights = {
        name: float(re.search(r' y="([\d.]+)"', found)[1])
        for found, name in re.findall(r"(<text[^>]*>)((?:name\d|far))</text>", svg)
    }
    assert len(heights) == 6
    ordered = sorted(heights.values())
    assert min(b - a for a, b in pairwise(ordered)) > 8.0  # points, at a font of 8.5
    assert min(ordered) > 0.0 and max(ordered) < 2.45 * 72


def test_a_long_run_is_thinned_but_keeps_its_mean():
    curve = plots.Curve("a", np.arange(6000), np.random.default_rng(1).normal(2, 1, 6000), "#000000")
    x, y, _ = plots._thin(curve)
    assert len(x) == plots.MAX_POINTS and y.mean() == pytest.approx(curve.y.mean())
    assert len(plots.line_chart([curve], x_label="iteration", y_label="y")) < 100_000


def test_histogram_needs_values():
    with pytest.raises(ValueError, match="needs values"):
        plots.histogram([plots.Sample("a", np.empty(0), "#000000")], x_label="x")


# --- the command -------------------------------------------------------------------------------------------------


def command(*arguments) -> subprocess.CompletedProcess:
    script = Path(__file__).parents[2] / "scripts" / "report.py"
    return run_script(script, *map(str, arguments))


def test_the_command_says_where_the_report_is(runs):
    done = command(runs["sft"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(runs["sft"] / "report.html")
    assert (runs["sft"] / "report.html").is_file()


def test_every_chart_of_the_report_is_a_picture_of_its_own(runs, tmp_path):
    several = [runs["gi_ppo"], runs["ppo"], runs["sft"]]
    done = command(*several, "--out", tmp_path / "r.html", "--charts", tmp_path / "charts")
    assert done.returncode == 0, done.stderr
    drawn = sum(tag == "svg" for tag, _ in page_of(several, tmp_path / "r.html").tags)
    pictures = list((tmp_path / "charts").glob("*.svg"))
    assert len(pictures) == drawn > 20 and f"{drawn} charts" in done.stdout
    for path in pictures:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_charts_of_names_that_differ_in_punctuation_alone_keep_their_files(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 1, "some/a.b": 1.0, "some/a b": 2.0, "some/a-b": 3.0}])
    assert {path.name for path in save_charts([run], tmp_path)} == {"some_a_b.svg", "some_a_b-2.svg", "some_a_b-3.svg"}


def test_a_note_stands_above_the_runs_as_text(runs, tmp_path):
    (tmp_path / "note.txt").write_text("What was <b>shown</b>\nand seen.\n\n \nWhere\x1b it holds.\n", encoding="utf-8")
    done = command(runs["sft"], "--out", tmp_path / "r.html", "--note", tmp_path / "note.txt")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    note = "<p>What was &lt;b&gt;shown&lt;/b&gt;\nand seen.</p><p>Where\N{REPLACEMENT CHARACTER} it holds.</p>"
    assert 0 < html.index(note) < html.index("<h2") and Page(html)
    assert 'class="box note"' not in build_report([runs["sft"]], tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_note_that_cannot_be_read_is_one_sentence(runs, tmp_path, content):
    if content:
        (tmp_path / "note.txt").write_bytes(content)
    done = command(runs["sft"], "--out", tmp_path / "r.html", "--note", tmp_path / "note.txt")
    assert done.returncode == 3 and "note.txt cannot be read" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r.html").exists()


def test_the_command_fails_in_one_sentence(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 3 and "no run folder" in done.stderr and "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_is_a_storage_error(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        build_report([runs["sft"]], tmp_path / "file" / "r.html")


def test_the_state_before_the_first_iteration_is_no_iteration(tmp_path: Path) -> None:
    run = rl_run(tmp_path, "run", "gi_ppo", 6)
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": 0, "gold/mean": 0.1}\n' + metrics.read_text())
    data = load_runs([run])[0]
    assert data.iterations == 6 and len(data.steps) == 7
    assert "Over 6 iterations" in build_report([run], tmp_path / "report.html").read_text()
