"""``iclkit eval``: the cross product, its cost beforehand, and one clear line for what cannot be run."""

from __future__ import annotations

import json
import threading
import time

import pytest

from iclkit.errors import RequestError
from iclkit.files import try_lock
from iclkit.records import Example
from iclkit.selectors import SelectorFile

from .eval_worlds import VotingLM, call, fakes, write_task

__all__ = ["fakes"]


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "things")


def run_ids(out):
    return {p.parent.name for p in out.glob("*/rows.jsonl")}


def test_eval_runs_the_cross_product_and_prints_the_leaderboard(task, tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    args = ["eval", str(task), "-s", "zero", "-s", "random", "-s", "knn", "-k", "2,4", "--out", str(out)]
    code, stdout, stderr = call(*args, capsys=capsys)
    assert code == 0
    # zero once; random under 3 seeds and knn under one, for two k; and three plain rules that ask no LM
    assert len(run_ids(out)) == 1 + 2 * (3 + 1) + 3
    assert "things · voting · k = 2" in stdout
    assert "things · voting · k = 4" in stdout
    assert "better" in stdout
    assert "9 runs" in stderr
    assert "630 prompts with 1,260 answers" in stderr
    assert f"iclkit leaderboard {out}" in stderr


def test_the_same_command_again_asks_the_lm_nothing(task, tmp_path, fakes, capsys):
    args = ["eval", str(task), "-s", "random", "-s", "bm25", "-k", "2", "--out", str(tmp_path / "runs")]
    _, first, _ = call(*args, capsys=capsys)
    fakes.scored.clear()
    code, second, stderr = call(*args, capsys=capsys)
    assert (code, fakes.scored) == (0, [])
    assert first == second
    assert "0 runs (6 more are finished)" in stderr  # three of each: bm25 fills up at random where no word is shared


def test_dry_run_says_the_cost_and_does_nothing(task, tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    code, stdout, stderr = call("eval", str(task), "-s", "random", "--dry-run", "--out", str(out), capsys=capsys)
    assert (code, fakes.scored, out.exists()) == (0, [], False)
    assert "3 runs, 210 prompts" in stderr
    assert "requests              420\n" in stdout
    assert "time                  not known for this LM" in stdout


def test_dry_run_says_from_how_many_queries_on_shared_demonstrations_cost_less(task, tmp_path, fakes, capsys):
    names = ("random-fixed", "filter,of=mfl", "knn", "bm25", "hybrid,near=2", "zero")
    args = [
        "eval",
        str(task),
        *(w for n in names for w in ("-s", n)),
        "-k",
        "4,16",
        "--dry-run",
        "--out",
        str(tmp_path),
    ]
    code, stdout, _ = call(*args, capsys=capsys)
    lines = [line.strip() for line in stdout.splitlines() if "against" in line]
    assert code == 0
    assert [line.split(" (about")[0] for line in lines] == [
        "things: random-fixed, filter,of=mfl at k=4",
        "things: random-fixed, filter,of=mfl at k=16",
        "things: hybrid,near=2 at k=4",
        "things: hybrid,near=2 at k=16",
    ]
    per_demo = fakes.count_tokens("\n\nInput: train 1 owl\nOutput: animal")
    assert (
        f"(about {16 * per_demo} tokens that all share) against knn, bm25 at k=4 ({4 * per_demo} for each" in lines[1]
    )
    assert "from 4 queries on, by tokens alone" in lines[1]
    assert f"(about {2 * per_demo} tokens that all share and {2 * per_demo} of its own for each query)" in lines[2]
    assert "from 7 queries on" in lines[3]
    code, stdout, _ = call(*args, "--json", capsys=capsys)
    assert json.loads(stdout)["smollm2-135m"]["break_even"] == lines
    assert "against" not in call(*args[:3], *args[-5:], capsys=capsys)[1]


def test_a_selector_file_breaks_even_with_what_it_has_not_with_k(task, tmp_path, fakes, capsys):
    best = tmp_path / "best.json"
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()[:3]]
    SelectorFile(tuple(Example(r["input"], r["output"]) for r in rows)).write(best)
    code, stdout, stderr = call(
        "eval", str(task), "-s", str(best), "-s", "knn", "-k", "16", "--dry-run", "--out", str(tmp_path / "runs"),
        capsys=capsys,
    )  # fmt: skip
    assert code == 0, stderr
    (line,) = [line.strip() for line in stdout.splitlines() if "against" in line]
    per_demo = fakes.count_tokens("\n\nInput: train 1 owl\nOutput: animal")
    assert f"at k=3 (about {3 * per_demo} tokens that all share) against knn at k=16 ({16 * per_demo} for" in line


def test_json_is_the_board_and_nothing_else(task, tmp_path, fakes, capsys):
    code, stdout, _ = call(
        "eval", str(task), "-s", "random", "-s", "bm25", "-f", "2", "--first", "20", "--seeds", "2", "--json",
        "--out", str(tmp_path / "runs"), capsys=capsys,
    )  # fmt: skip
    assert code == 0
    group = json.loads(stdout)["groups"][0]
    assert (group["queries"], group["k"]) == (20, 2)
    assert {x["selector"]: len(x["seeds"]) for x in group["lines"]} == {"random": 2, "bm25": 1, "majority": 1}


def test_a_random_order_is_run_under_every_seed(task, tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    call("eval", str(task), "-s", "bm25", "--order", "random", "-k", "3", "--out", str(out), capsys=capsys)
    assert len(run_ids(out)) == 3 + 1


def test_lines_without_an_lm_stand_on_every_board_unless_told_otherwise(task, tmp_path, fakes, capsys):
    def names(*more):
        args = ["eval", str(task), *more, "-k", "2", "--seeds", "1", "--json", "--out", str(tmp_path / "runs")]
        code, stdout, _ = call(*args, capsys=capsys)
        assert code == 0
        return {x["selector"]: x["verdict"] for x in json.loads(stdout)["groups"][0]["lines"]}

    without = {"majority": "asks no LM", "knn-vote": "asks no LM", "logreg": "asks no LM"}
    assert names("-s", "random", "-s", "knn").items() >= without.items()
    assert set(names("-s", "random")) == {"random", "majority"}  # no embedder is used, and none is loaded for this
    assert set(names("-s", "random", "--predictor", "none")) == {"random"}
    assert set(names("-s", "random", "--predictor", "knn-vote,k=3")) == {"random", "knn-vote,k=3"}


def test_a_run_says_by_which_command_it_was_made_and_when(task, tmp_path, fakes, capsys):
    out = tmp_path / "runs"
    args = ("eval", str(task), "-s", "random", "--seeds", "1", "--lm", "openai:m@http://me:secret@host/v1", "--out")
    call(*args, str(out), capsys=capsys)
    for file in out.glob("*/run.json"):
        facts = json.loads(file.read_text())["facts"]
        assert facts["source"]["command"].startswith(f"iclkit eval {task} -s random --seeds 1")
        assert facts["date"][:4].isdecimal()
        assert "secret" not in file.read_text()


def test_a_pool_of_ones_own_is_used(task, tmp_path, fakes, capsys):
    from iclkit.pool import Pool
    from iclkit.records import Example

    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example("my own owl", "animal"), Example("my own pie", "food")])
    code, stdout, _ = call(
        "eval", str(task), "-s", "random", "-k", "2", "--pool", str(tmp_path / "demos.db"), "--out",
        str(tmp_path / "runs"), capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert "2 examples in the pool" in stdout


def test_a_sweep_file_says_the_same_as_the_options(task, tmp_path, fakes, capsys):
    file, out = tmp_path / "sweep.toml", tmp_path / "runs"
    file.write_text(
        f'tasks = ["{task}"]\nselectors = ["random", "knn"]\nk = [1, 2]\norder = ["best-last", "best-first"]\n'
        f'calibrate = ["none", "batch"]\nseeds = 2\nlimit = 40\nout = "{out}"\n'
    )
    code, stdout, _ = call("eval", "--file", str(file), capsys=capsys)
    assert code == 0
    by_file = run_ids(out)
    # per calibration and order: 2 k x (random under 2 seeds, knn once)
    assert len(by_file) == 2 * 2 * 2 * 3 + 3
    assert "things · voting: by k" in stdout
    assert "knn + best-first + batch" in stdout
    options = [
        "-s",
        "random",
        "-s",
        "knn",
        "-k",
        "1,2",
        "--order",
        "best-last",
        "--order",
        "best-first",
        "--seeds",
        "2",
    ]
    options += ["--calibrate", "none", "--calibrate", "batch", "--limit", "40", "--out", str(out)]
    fakes.scored.clear()
    _, again, _ = call("eval", str(task), *options, capsys=capsys)
    assert (again, fakes.scored) == (stdout, [])
    call("eval", "--file", str(file), "--seeds", "1", "--out", str(tmp_path / "fewer"), capsys=capsys)
    assert len(run_ids(tmp_path / "fewer")) == 16 + 3


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('selector = ["random"]\nkk = 3\n', 2, "kk"),
        ("selector = [", 1, "not TOML"),
        (None, 1, "cannot read"),
        ('selector = ["random"]\nseeds = "many"\n', 2, "many"),
    ],
)
def test_a_bad_sweep_file_is_one_line(task, tmp_path, fakes, capsys, text, code, message):
    file = tmp_path / "sweep.toml"
    if text is not None:
        file.write_text(text)
    found, stdout, stderr = call("eval", str(task), "--file", str(file), capsys=capsys)
    assert (found, stdout, len(stderr.splitlines())) == (code, "", 1)
    assert message in stderr


def test_chat_and_template_change_the_prompt(task, tmp_path, fakes, capsys):
    args = [
        "eval",
        str(task),
        "-s",
        "random",
        "--seeds",
        "1",
        "-k",
        "1",
        "--limit",
        "3",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert call(*args, "--chat", capsys=capsys)[0] == 0
    assert fakes.scored[0].context.endswith("<|assistant|>\n")
    fakes.scored.clear()
    assert call(*args, "--template", "Sort it.\\n\\nText: {input}\\nSort: {output}", capsys=capsys)[0] == 0
    assert fakes.scored[0].context.startswith("Sort it.\n\nText: train")
    assert fakes.scored[0].context.endswith("\nSort:")


def test_leaks_are_excluded_and_said_or_stop_the_run(tmp_path, fakes, capsys):
    first = {"input": "TEST 0  " + "owl", "output": "animal"}
    task = write_task(tmp_path / "leaky", extra=[first])
    text = json.loads((task / "test.jsonl").read_text().splitlines()[0])["input"]
    (task / "train.jsonl").open("a").write(json.dumps({"input": text.upper(), "output": "animal"}) + "\n")
    out = tmp_path / "runs"
    code, stdout, stderr = call("eval", str(task), "-s", "bm25", "--out", str(out), capsys=capsys)
    assert code == 0
    assert "1 test rows stand in the pool; excluded" in stderr
    assert "1 of 70 test rows stand in the pool" in " ".join(stdout.split())
    code, stdout, stderr = call("eval", str(task), "-s", "bm25", "--on-leak", "stop", "--out", str(out), capsys=capsys)
    assert (code, stdout) == (1, "")
    assert "stand in the pool" in stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["-s", "knnn"], 2, "Did you mean 'knn'"),
        (["-s", "mmr,trade_of=1"], 2, "trade_off"),
        (["-s", "random", "-k", "41"], 2, "-k 40 or less"),
        (["-s", "random", "-k", "x"], 2, "1,4,8"),
        (["-s", "random", "-k", "-1"], 2, "less than 0"),
        (["-s", "random", "--order", "best-lost"], 2, "best-last"),
        (["-s", "random", "--limit", "0"], 2, "limit"),
        (["-s", "random", "--normalize", "max"], 2, "sum, mean"),
        (["-s", "random", "--on-leak", "hide"], 2, "exclude, stop, ignore"),
        (["-s", "random", "--pool", "missing.db"], 1, "missing.db"),
        ([], 2, "--selector"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_changes_nothing(task, tmp_path, fakes, capsys, args, code, text):
    out = tmp_path / "runs"
    found, stdout, stderr = call("eval", str(task), *args, "--out", str(out), capsys=capsys)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (found, stdout, len(errors)) == (code, "", 1)
    assert text in errors[0]
    assert not run_ids(out)


@pytest.mark.parametrize(
    ("name", "change", "code", "text"),
    [
        ("test", lambda lines: [*lines[:16], "{broken", *lines[17:]], 1, "line 17"),
        ("test", lambda lines: [*lines, '{"input": "test of a new kind", "output": "mineral"}'], 1, "mineral"),
        ("train", lambda lines: ['{"a": "owl", "b": "animal"}'], 1, "input"),
        ("train", lambda lines: [], 1, "train"),
    ],
)
def test_bad_data_is_one_line_and_changes_nothing(task, tmp_path, fakes, capsys, name, change, code, text):
    file = task / f"{name}.jsonl"
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))
    found, stdout, stderr = call("eval", str(task), "-s", "random", "--out", str(tmp_path / "runs"), capsys=capsys)
    assert (found, stdout) == (code, "")
    assert text in stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_task_that_is_not_there_is_exit_2_or_1_with_its_name(tmp_path, fakes, capsys):
    code, _, stderr = call("eval", str(tmp_path / "nothing"), "-s", "random", capsys=capsys)
    assert code in (1, 2)
    assert "nothing" in stderr


def test_an_empty_pool_is_refused(task, tmp_path, fakes, capsys):
    from iclkit.pool import Pool

    Pool.open(tmp_path / "empty.db").close()
    code, _, stderr = call("eval", str(task), "-s", "random", "--pool", str(tmp_path / "empty.db"), capsys=capsys)
    assert (code, "is empty" in stderr) == (1, True)


def test_the_fake_lm_prefers_the_label_beside_the_querys_word():
    lm = VotingLM()
    context = "Input: a owl\nLabel: animal\n\nInput: b owl\nLabel:"
    assert lm._vote(context, " animal") > lm._vote(context, " food")


class Picky(VotingLM):
    """A server that refuses what holds some words."""

    def __init__(self, *words):
        super().__init__()
        self.words = words

    def score(self, requests, on_done=None):
        for i, r in enumerate(requests):
            if {*self.words} & {*r.context.split("\n\n")[-1].split()}:
                raise RequestError(i, "refused by the content filter")
        return super().score(requests, on_done)


def test_a_refused_row_is_named_with_its_line_and_counted_on_the_board(task, tmp_path, fakes, capsys, monkeypatch):
    args = ["eval", str(task), "-s", "random", "-s", "bm25", "-k", "2", "--seeds", "1", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: Picky("7", "8"))
    code, stdout, stderr = call(*args, "--on-error", "stop", capsys=capsys)
    assert (code, stdout) == (1, "")
    assert "test.jsonl, line 8: refused by the content filter" in stderr.splitlines()[-1]
    code, stdout, stderr = call(*args, capsys=capsys)
    assert code == 0
    assert "2 of 70 queries failed, the first with: " in stderr
    assert "test.jsonl, line 8: refused by the content filter" in stderr
    board = " ".join(stdout.split())
    assert "2 queries failed in one run or another" in board
    assert "68 queries" in board
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: fakes)
    fakes.scored.clear()
    code, stdout, stderr = call(*args, "--json", capsys=capsys)
    assert (code, len(fakes.scored), json.loads(stdout)["groups"][0]["queries"]) == (0, 2 * 2 * 2, 70)
    assert "failed" not in stderr


def test_a_task_that_is_refused_whole_does_not_lose_the_other(tmp_path, fakes, capsys, monkeypatch):
    tasks = [str(write_task(tmp_path / "filthy", test=6)), str(write_task(tmp_path / "things"))]
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: Picky("0", "1", "2", "3", "4", "5"))
    code, stdout, stderr = call(
        "eval", *tasks, "-s", "random", "-k", "2", "--out", str(tmp_path / "runs"), capsys=capsys
    )
    assert code == 1
    assert "things" in stdout
    assert "filthy" not in stdout
    assert "error: none of 6 queries could be answered and judged" in stderr


def test_a_limit_samples_and_first_takes_the_head(task, tmp_path, fakes, capsys):
    rows = sorted((task / "test.jsonl").read_text().splitlines(), key=lambda line: json.loads(line)["output"])
    (task / "test.jsonl").write_text("\n".join(rows) + "\n")
    golds = {}
    for option in ("--limit", "--first"):
        out = tmp_path / option
        args = ["eval", str(task), "-s", "zero", "--predictor", "none", option, "20", "--out", str(out)]
        assert call(*args, capsys=capsys)[0] == 0
        (file,) = out.glob("*/rows.jsonl")
        golds[option] = {json.loads(line)["gold"] for line in file.read_text().splitlines()}
    assert golds == {"--limit": {"animal", "food"}, "--first": {"animal"}}
    code, _, stderr = call("eval", str(task), "-s", "zero", "--limit", "3", "--first", "3", capsys=capsys)
    assert code == 2
    assert "give one of them" in stderr


def test_a_given_prior_comes_as_text_or_as_a_file(task, tmp_path, fakes, capsys):
    args = ["eval", str(task), "-s", "random", "-k", "2", "--seeds", "1", "--calibrate", "given", "--json"]
    file = tmp_path / "prior.json"
    file.write_text('{"animal": 0.6, "food": 0.4}')
    found = []
    for prior in ('{"food": 0.4, "animal": 0.6}', str(file)):
        code, stdout, _ = call(*args, "--prior", prior, "--out", str(tmp_path / "runs"), capsys=capsys)
        assert code == 0
        found.append(json.loads(stdout))
    assert found[0] == found[1]
    for prior, code, text in (
        ('{"animal": 0.6}', 2, "'food' has no probability"),
        ('{"animal": "x"}', 1, "a number for each label"),
        ("[1]", 1, "cannot read"),
        ("{", 1, "not JSON"),
        (str(tmp_path / "nothing.json"), 1, "nothing.json"),
    ):
        got, _, stderr = call(*args, "--prior", prior, "--out", str(tmp_path / "runs"), capsys=capsys)
        assert (got, text in stderr.splitlines()[-1]) == (code, True), stderr


def test_the_end_of_an_answer_can_be_said(tmp_path, fakes, capsys):
    folder = tmp_path / "echo"
    folder.mkdir()
    for split, start in (("train", 0), ("test", 50)):
        rows = [{"input": f"say {n}", "output": f"it is {n}"} for n in range(start, start + 12)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    fakes._reply = lambda context: " it is so and so\nand so on for ever and ever"
    args = ["eval", str(folder), "-s", "zero", "--stop", "\\n", "--stop", "ever", "--out", str(tmp_path / "runs")]
    assert call(*args, capsys=capsys)[0] == 0
    code, _, stderr = call(*args, "--answer-tokens", "3", capsys=capsys)
    assert code == 0
    assert "12 of 12 answers ended by length, after 3 tokens" in stderr
    specs = [json.loads(p.read_text())["spec"] for p in (tmp_path / "runs").glob("*/run.json")]
    assert all(spec["parts"]["stop"] == ["\n", "ever"] for spec in specs)
    labeled = str(write_task(tmp_path / "things"))
    code, _, stderr = call("eval", labeled, "-s", "zero", "--answer-tokens", "3", capsys=capsys)
    assert (code, "these tasks have labels" in stderr) == (2, True)


def test_a_run_that_another_process_is_making_comes_last(task, tmp_path, fakes, capsys) -> None:
    args = ["eval", str(task), "-s", "random", "-s", "bm25", "-k", "2", "--seeds", "1", "--limit", "20"]
    assert call(*args, "--out", str(tmp_path / "first"), capsys=capsys)[0] == 0
    states = [json.loads(p.read_text()) for p in (tmp_path / "first").glob("*/run.json")]
    ids = {s["spec"]["parts"]["selector"]["name"]: s["id"] for s in states if "selector" in s["spec"]["parts"]}
    out = tmp_path / "shared"
    held = out / ids["random"]
    held.mkdir(parents=True)
    with (held / "lock").open("a") as lock:
        assert try_lock(lock)

        def let_go_when_the_other_is_done() -> None:
            for _ in range(6000):
                if (out / ids["bm25"] / "texts.jsonl").exists():
                    break
                time.sleep(0.01)
            lock.close()

        other = threading.Thread(target=let_go_when_the_other_is_done)
        other.start()
        code, stdout, stderr = call(*args, "--out", str(out), "--json", capsys=capsys)
        other.join()
    assert code == 0
    assert {"random", "bm25"} <= {x["selector"] for g in json.loads(stdout)["groups"] for x in g["lines"]}
    assert "random k=2 best-last seed 0: another process is making it; the others first" in stderr
    assert stderr.index("the others first") < stderr.index("waiting for the other process")
