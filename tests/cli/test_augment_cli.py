from __future__ import annotations

import json

import pytest

from iclkit.cli import main
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.testing import ScriptedLM


@pytest.fixture
def writer(monkeypatch):
    """The LM that ``--lm`` loads, answering by a function of the context."""

    def use(reply):
        lm = ScriptedLM(reply=reply)
        monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: lm)
        monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: None)
        return lm

    return use


@pytest.fixture
def run(capsys):
    def call(*args):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, args)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_what_is_generated_can_be_listed_and_removed_by_its_provenance(run, writer, tmp_path):
    pool, count = tmp_path / "demos.db", iter(range(99))
    writer(lambda _: f" text {next(count)}")
    code, out, err = run("augment", pool, "--method", "labels", "--labels", "good,bad", "-n", 2)
    assert (code, out) == (0, f"added 4 examples; {pool} holds 4\n")
    assert "asked at most 4 times" in err
    code, out, _ = run("pool", "ls", pool, "--where", "generated=labels", "--json")
    assert [row["output"] for row in json.loads(out)] == ["good", "good", "bad", "bad"]
    assert run("pool", "rm", pool, "--where", "generated=labels")[0] == 0
    assert len(Pool.open(pool)) == 0


def test_the_same_command_again_adds_nothing_and_a_dry_run_leaves_the_pool_alone(run, writer, tmp_path):
    pool = tmp_path / "demos.db"
    writer(lambda c: f" text {len(c)}")
    first = ("augment", pool, "--method", "labels", "--labels", "good,bad", "-n", 1)
    assert run(*first, "--dry-run")[1].endswith("is as it was\n")
    assert len(Pool.open(pool)) == 0
    run(*first)
    assert "2 were there already" in run(*first)[1]


def test_rejected_attempts_are_counted_on_stderr_and_kept_in_the_json(run, writer, tmp_path):
    pool, document = tmp_path / "demos.db", tmp_path / "long.txt"
    document.write_text("Ann bakes. She lives in Rome.\n\nBob sings. He lives in Oslo.")
    writer(lambda c: " Who bakes?\nAnswer: Ann\n" if "Ann" in c else " hm")
    code, out, err = run("augment", pool, "--method", "recycle", "--document", document, "-n", 2, "--json")
    facts = json.loads(out)
    assert code == 0
    assert [e["output"] for e in facts["examples"]] == ["[1]\nAnswer: Ann"]
    assert facts["rejected"] == [{"reason": "no question and answer", "text": " hm"}]
    assert facts["added"] == 1
    _, _, err = run("augment", pool, "--method", "recycle", "--document", document, "-n", 2)
    assert "rejected 1: no question and answer" in err


def test_traces_and_new_examples_start_from_the_real_ones_of_the_pool(run, writer, tmp_path):
    pool = tmp_path / "demos.db"
    with Pool.open(pool) as store:
        store.add(Example(f"what is {n} and 1?", str(n + 1)) for n in range(6))
    writer(lambda c: f" it is {int(c.rpartition('what is ')[2].split()[0]) + 1}")
    code, out, _ = run("augment", pool, "--method", "bootstrap", "-n", 2, "--cue", "Well,")
    assert (code, out) == (0, f"added 2 examples; {pool} holds 8\n")
    made = Pool.open(pool).view(where={"generated": "bootstrap"}).examples
    assert [e.output for e in made] == ["Well, it is 1", "Well, it is 2"]
    lm = writer(lambda c: f" what is {len(c)} and 1?\nOutput: 7")
    assert run("augment", pool, "--method", "synthesize", "-n", 4)[0] == 0
    assert all("Well," not in r.context for r in lm.generated)


def test_the_models_own_answers_to_unlabeled_inputs(run, writer, tmp_path):
    queries = tmp_path / "q.txt"
    queries.write_text("one\ntwo\n")
    writer(lambda _: " yes")
    _, out, _ = run("augment", tmp_path / "p.db", "--method", "answer", "--queries", queries, "--json")
    assert [(e["input"], e["output"]) for e in json.loads(out)["examples"]] == [("one", "yes"), ("two", "yes")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "auto-icl"), "needs --queries FILE"),
        (("--method", "recycle"), "needs --document FILE"),
        (("--method", "labels"), "needs --labels"),
        (("--method", "dream"), "'dream' is not one of"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(run, tmp_path, args, message):
    code, out, err = run("augment", tmp_path / "p.db", *args)
    assert (code, out) == (2, "")
    assert message in err
    code, _, err = run("augment", tmp_path / "p.db", "--method", "synthesize")
    assert code == 1
    assert "starts from real examples" in err
