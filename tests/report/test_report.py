"""The report: one safe file that shows what is there and compares runs, its pictures, and the command."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gipo_mc.errors import StorageError
from gipo_mc.report import panels, summary
from gipo_mc.report.drawing import colours, plots
from gipo_mc.report.report import build_report, save_charts
from gipo_mc.report.runs import load_run, load_runs
from tests.report.fake_runs import rl_run
from tests.report.pages import Page, page_of, write_run
from tests.scripts import run_script

CONTRACT = {
    "reward": ("mean", "std", "domain/easy"),
    "group": ("0/mass", "0/reward", "0/objective", "0/kl", "variance", "entropy"),
    "kl": ("mean", "weighted"),
    "policy": ("loss", "clip_fraction", "entropy", "grad_norm", "ratio_max"),
    "critic": ("loss", "explained_variance", "grad_norm"),
    "response": ("length", "truncated"),
    "time": (*colours.PHASES, "total"),
    "throughput": ("tokens_per_second",),
    "gold": ("mean", "domain/easy"),
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
        assert colour in mean and f">{name}</text>" in mean


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
        [
            {
                "step": s,
                "reward/mean": 1.0,
                f"reward/domain/{evil}": 1.0,
                "reward/domain/$x_{": 2.0,
                "reward/domain/\x1b[2J\u202e": 3.0,
            }
            for s in (1, 2)
        ],
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
