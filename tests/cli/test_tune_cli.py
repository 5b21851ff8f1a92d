"""``iclkit tune``: a search from the command line, resumed, drawn, and its file used by the other commands."""

from __future__ import annotations

import json

import pytest

from iclkit.pool import Pool
from iclkit.records import Example

from .eval_worlds import call, fakes, write_task

__all__ = ["fakes"]
SMALL = ("--trials", "4", "--validation", "6", "--confirm", "6", "-k", "2", "--sampler", "ease,warmup=2,steps=5")


def tuned(source, out, capsys, *more):
    return call("tune", "ease", str(source), "--out", str(out), *SMALL, *more, capsys=capsys)


def test_a_search_writes_a_selector_that_the_other_commands_take(tmp_path, fakes, capsys):
    task, out = write_task(tmp_path / "things"), tmp_path / "best.json"
    code, stdout, stderr = tuned(task, out, capsys, "--plot", str(tmp_path / "search.svg"))
    assert code == 0, stderr
    assert "the best of 4 lists" in stdout
    assert "on 6 fresh queries" in stdout
    assert "at most 42 prompts: 4 lists on 6 queries, then the best 3 on 6" in stderr
    assert f"--selector {out}" in stderr
    assert (tmp_path / "search.svg").read_text().startswith("<svg")
    shown = [d["id"] for d in json.loads(out.read_text())["demonstrations"]]
    code, stdout, _ = call("eval", str(task), "-s", str(out), "-s", "random", "-k", "2", "--limit", "5", "--seeds", "1",
                           "--out", str(tmp_path / "runs"), "--json", capsys=capsys)  # fmt: skip
    assert code == 0
    rows = [json.loads(line) for f in (tmp_path / "runs").glob("*/rows.jsonl") for line in f.read_text().splitlines()]
    assert [r["shown"] for r in rows].count(shown) == 5
    assert str(out) in stdout
    code, stdout, _ = call("diagnose", str(task), "-s", str(out), "-k", "2", "--limit", "5", "--embedder", "none",
                           "--json", capsys=capsys)  # fmt: skip
    assert code == 0
    assert json.loads(stdout)[0]["coverage"] == pytest.approx(2 / 40)


def test_the_same_command_resumes_and_more_trials_go_on(tmp_path, fakes, capsys):
    task, out = write_task(tmp_path / "things"), tmp_path / "best.json"
    tuned(task, out, capsys)
    first, asked = json.loads(out.read_text()), len(fakes.scored)
    tuned(task, out, capsys)
    again = json.loads(out.read_text())
    assert len(fakes.scored) - asked == 3 * 6 * 2  # the confirmation, which the LM's cache would answer
    timeless = [{k: v for k, v in data.items() if k not in ("made", "spent")} for data in (first, again)]
    assert timeless[0] == timeless[1]
    code, _, _ = call("tune", "ease", str(task), "--out", str(out), *SMALL, "--trials", "6", capsys=capsys)
    assert code == 0
    assert json.loads(out.read_text())["search"]["values"][:4] == first["search"]["values"]
    assert json.loads(out.read_text())["search"]["trials"] == 6


def test_a_pool_alone_is_enough_and_its_demonstrations_move_to_another_pool(tmp_path, fakes, capsys):
    words = [("owl", "animal"), ("pie", "food")]
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(Example(f"thing {n} {words[n % 2][0]}", words[n % 2][1]) for n in range(40))
    out = tmp_path / "best.json"
    code, _, stderr = tuned(tmp_path / "demos.db", out, capsys, "--template", "Word: {input}\\nSort: {output}")
    assert code == 0, stderr
    assert "from train, 20 candidates of 20 train rows" in stderr
    code, stdout, _ = call("select", str(tmp_path / "demos.db"), "thing 99 owl", "-s", str(out), "-k", "2", "--prompt",
                           capsys=capsys)  # fmt: skip
    demos = json.loads(out.read_text())["demonstrations"]
    wanted = "".join(f"Word: {d['input']}\nSort: {d['output']}\n\n" for d in demos) + "Word: thing 99 owl\nSort:\n"
    assert stdout == wanted
    code, stdout, _ = call("tune", "demos", str(out), capsys=capsys)
    (tmp_path / "demos.jsonl").write_text(stdout)
    call("pool", "add", str(tmp_path / "small.db"), str(tmp_path / "demos.jsonl"), capsys=capsys)
    code, stdout, stderr = call("select", str(tmp_path / "small.db"), "thing 99 owl", "-s", str(out), "-k", "2",
                                "--prompt", capsys=capsys)  # fmt: skip
    assert (code, stdout) == (0, wanted), stderr


def test_an_instruction_is_chosen_with_the_list_and_stands_in_the_prompt(tmp_path, fakes, capsys):
    task, out = write_task(tmp_path / "things"), tmp_path / "best.json"
    (tmp_path / "words.txt").write_text("Say what it is.\nName the sort.\n")
    code, stdout, _ = tuned(task, out, capsys, "--instructions", str(tmp_path / "words.txt"))
    chosen = json.loads(out.read_text())["instruction"]
    assert code == 0
    assert chosen in ("Say what it is.", "Name the sort.")
    assert f"Instruction: {chosen}" in stdout
    code, stdout, _ = tuned(task, out, capsys, "--write-instructions", "3", "--json")
    assert code == 0
    assert json.loads(stdout)["candidates"]["instructions"] >= 1
    assert json.loads(stdout)["instruction"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--sampler", "eas"], 2, "no sampler named 'eas'. Did you mean 'ease'?"),
        (["--sampler", "ease,nuu=1"], 2, "Did you mean 'nu'?"),
        (["--validation", "500"], 1, "add examples, or ask for fewer with --validation and --confirm"),
        (["--storage", "nonsense://x"], 2, "cannot open the study storage"),
        (["--features", "block"], 2, "use --features positions"),
        (["--features", "blocks"], 2, "choose from positions, block"),
        (["--instructions", "none.txt"], 1, "cannot read none.txt"),
        (["--candidates", "1"], 1, "k is 2 with 1 candidates"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_exit_code(tmp_path, fakes, capsys, words, code, says):
    task = write_task(tmp_path / "things")
    got, stdout, stderr = tuned(task, tmp_path / "best.json", capsys, *words)
    assert (got, stdout) == (code, "")
    assert says in stderr.splitlines()[-1]
    assert not (tmp_path / "best.json").exists()


def test_a_pool_that_is_not_there_or_empty_is_one_line(tmp_path, fakes, capsys):
    code, _, stderr = tuned(tmp_path / "none.db", tmp_path / "best.json", capsys)
    assert (code, "no pool at" in stderr) == (1, True)
    Pool.open(tmp_path / "empty.db").close()
    code, _, stderr = tuned(tmp_path / "empty.db", tmp_path / "best.json", capsys)
    assert (code, "is empty; add examples" in stderr) == (1, True)


def test_a_dry_run_prices_the_papers_search_without_a_model(tmp_path, home, capsys, monkeypatch):
    for place in ("iclkit.lm.load_lm", "iclkit.embed.load_embedder", "iclkit.models.resolve"):
        monkeypatch.setattr(place, lambda *a, **k: pytest.fail("a model was loaded"))
    task, out = write_task(tmp_path / "things", train=200), tmp_path / "best.json"
    code, stdout, stderr = call("tune", "ease", str(task), "--out", str(out), "--preset", "paper", "--lm", "not/there",
                                "--dry-run", capsys=capsys)  # fmt: skip
    assert code == 0, stderr
    found = {line.split("  ")[0]: line[20:].split("(")[0].strip() for line in stdout.splitlines()}
    assert found["prompts, at most"] == "3,480"
    assert (found["lists"], found["proposals"]) == ("165", "125")
    assert found["texts to embed"] == f"{165 + 125 * 1000 + 100 + 20:,}"
    assert not [*tmp_path.glob("best*")]
