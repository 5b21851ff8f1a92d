"""Whole trainings: they learn what the LM prefers, resume, and say what they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iclkit
from iclkit.embed import Retriever, load_embedder
from iclkit.errors import DataError, UsageError
from iclkit.pool import Pool
from iclkit.records import Query, digest
from iclkit.selectors import Kit, make_selector
from iclkit.testing import conflicting_tasks, shuffled_judge
from iclkit.trainers import Ledger, Trained, Training, corpus_of_tasks
from iclkit.trainers._card import _metadata

from .conftest import config_for

LEARNS = {"candidates": "random:16", "learning_rate": 0.1, "epochs": 15, "temperature": 0.2, "evaluate_every": 30,
          "patience": 0, "queries": 120, "held_out": 40, "report": 60, "batch_size": 16}  # fmt: skip
REWARD = {"reward_learning_rate": 2e-4, "reward_epochs": 8, "reward_negatives": 3, "reward_batch_size": 16,
          "negatives": 8, "positives": 2}  # fmt: skip
QUICK = {"candidates": "random:8", "learning_rate": 2e-2, "max_steps": 8, "temperature": 0.1, "evaluate_every": 2,
         "patience": 0, "queries": 32, "held_out": 8, "report": 10, "reward_max_steps": 6, "reward_negatives": 3,
         "hard_negatives": 1, "list_size": 4, "negatives": 3, "positives": 2, "batch_size": 8}  # fmt: skip

SETS = {"se2": {"shots": 2, "random_negatives": 2}, "ceil": {"shots": 2, "neighbors": 6, "subsets": 6}}


def train(method: str, judge: Any, tasks: list[Any], out: Path, base: Path, reward: Path, **settings: Any) -> Trained:
    config = config_for(method, **{"base": str(base), "reward_base": str(reward), "iterations": 1, **settings})
    return Training(corpus_of_tasks(tasks, config), judge, out, config).run()


def gains(trained: Trained) -> dict[tuple[str, str], float]:
    (report,) = trained.reports
    return {(w.name, w.pool): w.gain.value for w in report.strategies}


def recall(trained: Trained, task: Any, judge: Any) -> float:
    """Share of test rows whose nearest train row helps."""
    view = Pool.of(task.train).view()
    chooser = make_selector("knn").fit(view, Kit(embedder=load_embedder(str(trained.folder)), task=task.name))
    picks = chooser.select_many([Query(e.input) for e in task.test], 1)
    near = [view.examples_of([s.ids[0]])[0] for s in picks]
    return float(np.mean([judge.helps(e.text, n) for e, n in zip(task.test, near, strict=True)]))


def learns(method: str, task: Any, judge: Any, out: Path, base: Path, reward: Path, least: float) -> None:
    trained = train(method, judge, [task], out, base, reward, **LEARNS, **(REWARD if method == "llm-r" else {}))
    found = gains(trained)
    for pool in ("among the candidates", "from the whole pool"):
        for other in ("bm25", "knn, untrained"):
            assert found[method, pool] > found[other, pool] + 0.4, (pool, other)
    assert recall(trained, task, judge) >= least
    (report,) = trained.reports
    assert 0.5 < report.oracle_share.low <= report.oracle_share.value <= 1


@pytest.mark.parametrize("method", ["epr", "udr"])
def test_a_method_finds_what_helps_where_likeness_misleads(method, mode_task, bag, bert, tmp_path) -> None:
    learns(method, *mode_task, tmp_path / "out", bag, bert, 0.85)


@pytest.mark.slow
@pytest.mark.models
def test_llm_r_finds_what_helps_where_likeness_misleads(mode_task, bag, minilm_path, tmp_path) -> None:
    """Its reward model has to compare texts word by word, which a tiny one does not learn from so little."""
    learns("llm-r", *mode_task, tmp_path / "out", bag, minilm_path, 0.75)


@pytest.mark.parametrize("method", ["epr", "udr", "llm-r"])
def test_shuffled_feedback_teaches_nothing(method, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    settings = {**LEARNS, **(REWARD if method == "llm-r" else {}), "epochs": 6, "reward_epochs": 2}
    trained = train(method, shuffled_judge(judge), [task], tmp_path / "out", bag, bert, **settings)
    assert recall(trained, task, judge) < 0.55  # by chance 1 / 4
    (report,) = trained.reports
    assert report.oracle_share.low < 0.15


def test_the_oracle_is_never_beaten_and_random_gains_nothing(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    trained = train("epr", judge, [task], tmp_path / "out", bag, bert, **QUICK)
    (report,) = trained.reports
    among = {w.name: w.gain.value for w in report.strategies if w.pool == "among the candidates"}
    assert among["random"] == 0
    assert max(among, key=among.get) == "oracle"


def test_a_training_that_helps_nobody_says_so(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    heard = {}
    for rate in (1e-12, 0.1):
        config = config_for(
            "epr", base=str(bag), **{**QUICK, "learning_rate": rate, "max_steps": 40, "evaluate_every": 40}
        )
        out, lines = tmp_path / str(rate), list[str]()
        Training(corpus_of_tasks([task], config), judge, out, config, say=lines.append).run()
        heard[rate] = [line for line in lines if "not more than before training" in line]
    assert [len(lines) for lines in heard.values()] == [1, 0]


def test_an_instruction_tells_conflicting_tasks_apart(tmp_path, encoders) -> None:
    tasks, judge = conflicting_tasks()
    words = [t for task in tasks for t in encoders.texts_of(task)] + [f"{t.card.description}:" for t in tasks]
    base = encoders.layered_encoder(tmp_path / "base", words)
    settings = {**LEARNS, "queries": 110, "held_out": 20, "report": 40, "learning_rate": 1e-2, "epochs": 25}
    gain = {}
    for instruct in ("both", "none"):
        out = tmp_path / instruct
        trained = train("udr", judge, [*tasks], out, base, base, **settings, instruct=instruct)
        ways = [w for r in trained.reports for w in r.strategies if (w.name, w.pool) == ("udr", "from the whole pool")]
        gain[instruct] = float(np.mean([w.gain.value for w in ways]))
    assert gain["both"] > gain["none"] + 0.15


# -- the folder --


def test_the_folder_is_a_plain_sentence_transformers_model(mode_task, bag, bert, tmp_path) -> None:
    from sentence_transformers import SentenceTransformer

    task, judge = mode_task
    trained = train("epr", judge, [task], tmp_path / "out", bag, bert, **QUICK)
    retriever = load_embedder(str(trained.folder))
    assert isinstance(retriever, Retriever)
    assert retriever.trained_on == (task.name,)
    plain = SentenceTransformer(str(trained.folder), device="cpu")
    example = task.train[0]
    text = retriever.document_text(example)
    assert text == f"{example.text}\t{example.output}"
    np.testing.assert_allclose(plain.encode([text]), retriever.encode_documents([text]), atol=1e-5)
    card = json.loads((trained.folder / "iclkit.json").read_text())
    assert card["config"]["queries"] == 32
    assert card["pool"]["size"] == len({e.id for e in task.train})
    assert task.name in (trained.folder / "README.md").read_text()


def test_the_readme_is_a_card_as_the_hub_reads_it(mode_task, bag, bert, tmp_path) -> None:
    from huggingface_hub import ModelCard

    task, judge = mode_task
    told = replace(task, card=replace(task.card, licence="CC-BY-4.0", source="hf:ann/modes:v2"))
    trained = train("epr", judge, [told], tmp_path / "out", bag, bert, **QUICK)
    text = (trained.folder / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert data.datasets == ["ann/modes"]
    assert (data.base_model, data.license) == (None, None)  # a folder of this machine says nothing of the hub
    assert str(bag) not in text.split("---")[1]
    assert f"{task.name}: CC-BY-4.0" in text
    (report,) = trained.reports
    (own,) = (w for w in report.strategies if (w.name, w.pool) == ("epr", "from the whole pool"))
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {
        "lm_gain": round(own.gain.value, 4), "accuracy": round(own.accuracy.value, 4),
    }  # fmt: skip
    named = _metadata({**trained.card, "config": {**trained.card["config"], "base": "all-minilm-l6-v2"}}, ())
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2\n" in named
    assert "license: apache-2.0\n" in named
    assert "base_model: intfloat/e5-base-v2\n" in _metadata(
        {**trained.card, "config": {**trained.card["config"], "base": "intfloat/e5-base-v2@main"}}, ()
    )


def test_two_towers_and_inner_products_rank_as_in_training(mode_task, bert, tmp_path) -> None:
    from sentence_transformers import SentenceTransformer

    task, judge = mode_task
    settings = {**QUICK, "towers": 2, "similarity": "dot", "temperature": 1.0, "max_steps": 4, "learning_rate": 1e-4}
    trained = train("epr", judge, [task], tmp_path / "out", bert, bert, **settings)
    retriever = load_embedder(str(trained.folder), dtype="fp32")
    model = SentenceTransformer(str(trained.folder), device="cpu")
    documents = [retriever.document_text(e) for e in task.train[:50]]
    queries = [e.text for e in task.test[:20]]
    raw = model.encode_query(queries) @ model.encode_document(documents).T
    found = retriever.encode_queries(queries) @ retriever.encode_documents(documents).T
    assert (raw.argmax(1) == found.argmax(1)).all()
    assert not np.allclose(model.encode_query(queries[:1]), model.encode_document(queries[:1]))


def test_eval_marks_a_retriever_that_has_seen_the_task(mode_task, bag, bert, tmp_path) -> None:
    from iclkit import evaluate
    from iclkit.report import leaderboard

    task, judge = mode_task
    embedder = load_embedder(str(train("epr", judge, [task], tmp_path / "out", bag, bert, **QUICK).folder))
    pool = Pool.of(task.train)
    seen = evaluate(task, "knn", judge, pool=pool, k=1, embedder=embedder, limit=10)
    unseen = evaluate(replace(task, name="another"), "knn", judge, pool=pool, k=1, embedder=embedder, limit=10)
    notes = [line.notes for run in (seen, unseen) for g in leaderboard([run]).groups for line in g.lines]
    assert any("was trained on this task" in n for n in notes[0])
    assert not notes[1]


# -- again, and after a kill --


def test_the_same_training_gives_the_same_weights_and_asks_nothing_twice(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    first = train("udr", judge, [task], tmp_path / "a", bag, bert, **QUICK, iterations=2)
    again = train("udr", judge, [task], tmp_path / "b", bag, bert, **QUICK, iterations=2)
    weights = [(t.folder / "model.safetensors").read_bytes() for t in (first, again)]
    assert weights[0] == weights[1]
    assert first.reports == again.reports
    asked = len(judge.scored)
    finished = train("udr", judge, [task], tmp_path / "a", bag, bert, **QUICK, iterations=2)
    assert finished.reports == first.reports
    assert len(judge.scored) == asked


def test_a_later_iteration_adds_candidates_and_scores_only_those(mode_task, bag, bert, tmp_path) -> None:
    task, _ = mode_task
    from iclkit.testing import hidden_mode_task

    judge = hidden_mode_task(200, 60, modes=4, forms=3)[1]
    config = config_for("udr", **{**QUICK, "base": str(bag), "iterations": 2})
    training = Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).prepare()
    seen: list[dict[int, list[tuple[int, float]]]] = []
    gather = training.method.gather

    def spy(*args: Any) -> Any:
        seen.append(gather(*args))
        return seen[-1]

    training.method.gather = spy
    training.run()
    asked = [(r.context, r.continuation) for r in judge.scored]
    assert len(asked) == len({*asked})
    for row, own in seen[0].items():
        assert {r for r, _ in own} <= {r for r, _ in seen[1][row]}
        assert max(v for _, v in seen[1][row]) >= max(v for _, v in own)
        assert row not in {r for r, _ in seen[1][row]}


KILLED = """
import os, re, signal, sys
from pathlib import Path
from iclkit.testing import hidden_mode_task
from iclkit.trainers import Training, corpus_of_tasks
from tests.trainers.conftest import config_for
method, out, base, reward, step, count = sys.argv[1:]
settings = eval(os.environ["SETTINGS"])
task, judge = hidden_mode_task(200, 60, modes=4, forms=3)
config = config_for(method, **{**settings, "base": base, "reward_base": reward, "iterations": 1})

def bar(title):
    def report(done, total):
        if re.search(step, title) and done >= int(count):
            os.kill(os.getpid(), signal.SIGKILL)
    return report

training = Training(corpus_of_tasks([task], config), judge, Path(out), config, bar=bar)
training.run()
print(f"SCORED {len(judge.scored)} {len(training.session.feedback.ledger)}", flush=True)
"""


@pytest.mark.parametrize(
    ("method", "step", "count"),
    [
        ("epr", "feedback", 1),
        ("epr", "training", 5),
        ("llm-r", "reward model", 3),
        ("llm-r", "training", 5),
        ("se2", "training", 5),
        ("ceil", "subsets", 1),
        ("ceil", "training$", 5),
    ],
)
def test_a_killed_training_resumes_to_the_same_result(method, step, count, mode_task, bag, bert, tmp_path) -> None:
    def run(out: str, step: str, count: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, method, str(tmp_path / out), str(bag), str(bert), step, str(count)]
        env = {**os.environ, "SETTINGS": repr(QUICK | SETS.get(method, {}))}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)

    killed = run("broken", step, count)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "broken").exists()
    resumed, whole = run("broken", "never", 0), run("whole", "never", 0)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr
    counts = [int(done.stdout.split("SCORED ")[1].split()[0]) for done in (resumed, whole)]
    assert counts[0] < counts[1]  # what the killed one had scored was not asked again
    cards = [json.loads((tmp_path / name / "iclkit.json").read_text()) for name in ("broken", "whole")]
    assert cards[0]["report"] == cards[1]["report"]
    assert cards[0]["training"][0]["judged"] == cards[1]["training"][0]["judged"]
    weights = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors")}
    assert weights
    for name in weights:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Neighborly:
    """A judge whose scores depend a little on what it reads together, as those of bf16 do; killed when it has given
    ``last`` answers."""

    def __init__(self, judge: Any, last: int = 10**9) -> None:
        self.judge, self.left, self.asked = judge, last, 0
        self.name, self.fingerprint, self.context_size = judge.name, judge.fingerprint, judge.context_size
        self.count_tokens, self.render_chat, self.generate = judge.count_tokens, judge.render_chat, judge.generate

    def score(self, requests: Any, on_done: Any = None) -> Any:
        self.asked += len(requests)
        shift = int(digest(sorted({r.context for r in requests}), 4), 16) / 2**32
        scores = [
            replace(s, logprob=min(0.0, s.logprob - 0.3 * (n * shift % 1)))
            for n, s in enumerate(self.judge.score(requests))
        ]
        for n, score in enumerate(scores):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            if on_done is not None:
                on_done([(n, score)])
        return scores


def test_a_kill_while_prompts_are_read_together_changes_no_score_and_no_weight(
    mode_task, bag, bert, tmp_path, monkeypatch
) -> None:
    last = 600
    monkeypatch.setattr("iclkit.trainers._feedback.CHUNK", 64)
    task, judge = mode_task
    settings = {**QUICK, "max_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        train("epr", Neighborly(judge, last), [task], tmp_path / "broken", bag, bert, **settings)
    again, whole = Neighborly(judge), Neighborly(judge)
    train("epr", again, [task], tmp_path / "broken", bag, bert, **settings)
    train("epr", whole, [task], tmp_path / "whole", bag, bert, **settings)
    labels = len(task.labels)
    assert whole.asked - last <= again.asked <= whole.asked - last + 65 * labels  # one portion again, no more
    ledgers = [Ledger(tmp_path / f"{name}.work" / "ledger.db") for name in ("broken", "whole")]
    (scope,) = ledgers[0].scopes()
    assert [*ledgers[0].rows(scope)] == [*ledgers[1].rows(scope)]
    assert not ledgers[0].begun(scope)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("broken", "whole")]
    assert weights[0] == weights[1]


def damage(folder: Path, how: str) -> None:
    """What a bad disk or an unfinished write makes of a checkpoint."""
    weights = next(folder.rglob("model.safetensors"))
    if how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "other weights":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 255
        weights.write_bytes(bytes(data))
    elif how == "no optimizer":
        (folder / "optimizer.pt").write_bytes(b"")
    else:
        (folder / "trainer_state.json").write_text("[]")


@pytest.mark.parametrize("how", ["cut weights", "other weights", "no optimizer", "odd state"])
def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(how, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    whole = train("epr", judge, [task], tmp_path / "whole", bag, bert, **QUICK)
    config = config_for("epr", **{"base": str(bag), "reward_base": str(bert), "iterations": 1, **QUICK})

    class Killed(Exception): ...

    def bar(title: str) -> Any:
        def report(done: int, total: int) -> None:
            if title == "training" and done == 7:
                raise Killed

        return report

    heard: list[str] = []
    corpus, out = corpus_of_tasks([task], config), tmp_path / "out"
    with pytest.raises(Killed):
        Training(corpus, judge, out, config, bar=bar).run()
    found = sorted((tmp_path / "out.work" / "fit-0" / "checkpoints").glob("checkpoint-*"))
    assert [p.name for p in found] == ["checkpoint-4", "checkpoint-6"]
    damage(found[-1], how)
    resumed = Training(corpus, judge, out, config, say=heard.append).run()
    assert any("checkpoint-6 is not whole" in line for line in heard)
    assert resumed.card["training"] == whole.card["training"]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "file", ["fit-0.json", "model-0/model.safetensors", "model-0/whole.json", "reward-0/rewards.json"]
)
def test_damaged_results_of_a_step_are_made_again(file, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    settings = {**QUICK, "max_steps": 2, "reward_max_steps": 2}
    whole = train("llm-r", judge, [task], tmp_path / "out", bag, bert, **settings)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    for text in ("", "{oops", "[]", '{"key": 1}'):
        shutil.rmtree(tmp_path / "out")  # as if killed before the last step
        (tmp_path / "out.work" / file).write_text(text)
        again = train("llm-r", judge, [task], tmp_path / "out", bag, bert, **settings)
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
        assert again.card["training"] == whole.card["training"]


@pytest.mark.parametrize("text", ["", "{oops", "[]", "5", '{"key": 1, "config": 5}', '{"config": {"seed": []}}'])
def test_a_damaged_note_of_the_work_is_one_line(text, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    config = config_for("epr", **{**QUICK, "base": str(bag)})
    corpus = corpus_of_tasks([task], config)
    Training(corpus, judge, tmp_path / "out", config).score()
    (tmp_path / "out.work" / "training.json").write_text(text)
    with pytest.raises(UsageError, match="give --restart to begin again"):
        Training(corpus, judge, tmp_path / "out", config).prepare()
    assert Training(corpus, judge, tmp_path / "out", config, restart=True).estimate().calls == 0


@pytest.mark.parametrize(
    "report", ["5", '[{"task": "t"}]', "null", '[{"task": 1, "queries": 1, "ways": [], "captured": 3}]']
)
def test_a_finished_folder_with_a_damaged_card_is_one_line(report, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    train("epr", judge, [task], tmp_path / "out", bag, bert, **QUICK)
    card = json.loads((tmp_path / "out" / "iclkit.json").read_text())
    (tmp_path / "out" / "iclkit.json").write_text(json.dumps(card | {"report": json.loads(report)}))
    with pytest.raises(DataError, match=r"iclkit\.json is damaged .*; remove .*out and give the same command again"):
        train("epr", judge, [task], tmp_path / "out", bag, bert, **QUICK)


def test_patience_outlasts_a_kill(mode_task, bag, bert, tmp_path, monkeypatch) -> None:
    from iclkit.trainers import _epr

    task, judge = mode_task
    config = config_for("epr", **{**QUICK, "base": str(bag), "max_steps": 16, "evaluate_every": 2, "patience": 3,
                              "checkpoints": 8})  # fmt: skip
    gains = {0: 0.0, 2: 0.1, 4: 0.5, 6: 0.2, 8: 0.4, 10: 0.3, 12: 0.9}
    step = [0]
    monkeypatch.setattr(_epr, "candidate_gain", lambda *_: gains[step[0]])

    class Killed(Exception): ...

    def run(out: str, until: int) -> Trained:
        def bar(title: str) -> Any:
            def report(done: int, total: int) -> None:
                step[0] = done if title == "training" else step[0]
                if title == "training" and done > until:
                    raise Killed

            return report

        step[0] = 0
        return Training(corpus_of_tasks([task], config), judge, tmp_path / out, config, bar=bar).run()

    whole = run("whole", 99)
    (facts,) = whole.card["training"]
    assert (facts["steps"], facts["kept"]) == (10, 4)
    for until in (5, 7, 9):
        out = f"broken-{until}"
        with pytest.raises(Killed):
            run(out, until)
        assert run(out, 99).card["training"] == whole.card["training"]
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in (out, "whole")]
        assert weights[0] == weights[1]


def test_a_training_that_had_stopped_by_patience_does_not_go_on_after_a_kill(
    mode_task, bag, bert, tmp_path, monkeypatch
) -> None:
    from iclkit.trainers import _epr, _train

    task, judge = mode_task
    config = config_for("epr", **{**QUICK, "base": str(bag), "max_steps": 16, "patience": 2, "checkpoints": 8})
    gains = iter([0.0, 0.5, 0.1, 0.2])
    monkeypatch.setattr(_epr, "candidate_gain", lambda *_: next(gains))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("iclkit.trainers._fit.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).run()
    assert _train.is_whole(tmp_path / "out.work" / "fit-0" / "checkpoints" / "checkpoint-6")
    monkeypatch.setattr(_epr, "candidate_gain", lambda *_: 0.0)  # nothing is judged again but the start
    (facts,) = Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).run().card["training"]
    assert (facts["steps"], facts["kept"], facts["judged"]) == (6, 2, [[2, 0.5], [4, 0.1], [6, 0.2]])


def test_checkpoints_of_other_scores_are_not_gone_on_from(mode_task, bag, bert, tmp_path) -> None:
    """A prompt that was refused before a kill and is answered after it changes the lessons."""
    from iclkit.errors import RequestError
    from iclkit.testing import hidden_mode_task

    task, judge = mode_task

    class Refusing(type(judge)):  # type: ignore[misc]
        refuses = True

        def score(self, requests: Any, on_done: Any = None) -> Any:
            for n, request in enumerate(requests):
                if self.refuses and len(request.context) % 5 == 0:
                    raise RequestError(n, "filtered")
            return super().score(requests, on_done)

    other = hidden_mode_task(200, 60, modes=4, forms=3)[1]
    other.__class__ = Refusing
    config = config_for("epr", **{"base": str(bag), "iterations": 1, **QUICK})
    corpus, heard = corpus_of_tasks([task], config), list[str]()

    class Killed(Exception): ...

    def bar(title: str) -> Any:
        def report(done: int, total: int) -> None:
            if title == "training" and done == 7:
                raise Killed

        return report

    with pytest.raises(Killed):
        Training(corpus, other, tmp_path / "out", config, bar=bar, say=heard.append).run()
    assert any("refused" in line and "(the first: filtered)" in line for line in heard)
    other.refuses = False
    Training(corpus, other, tmp_path / "out", config).run()
    train("epr", judge, [task], tmp_path / "whole", bag, bert, **QUICK)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["epr", "llm-r", "se2", "ceil"])
def test_two_processes_train_one_model_and_ask_once(method, mode_task, bag, bert, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
               method, str(tmp_path / "out"), str(bag), str(bert), "never", "0"]  # fmt: skip
    env = {
        **os.environ,
        "SETTINGS": repr(QUICK | SETS.get(method, {})),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    env["PYTHONPATH"] = str(Path(iclkit.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    asked, kept = zip(*(map(int, part.split()[:2]) for part in done.stdout.split("SCORED ")[1:]), strict=True)
    card = json.loads((tmp_path / "out" / "iclkit.json").read_text())
    assert len(asked) == 2, done.stdout + done.stderr
    assert min(asked) == 0
    assert max(asked) >= max(kept) > 0
    assert QUICK["max_steps"] / 2 < card["training"][0]["steps"] <= QUICK["max_steps"]  # short batches are left out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.work", "script.py"]


def test_other_settings_need_restart_and_keep_scores(mode_task, bag, bert, tmp_path) -> None:
    from iclkit.testing import hidden_mode_task

    task, _ = mode_task
    judge = hidden_mode_task(200, 60, modes=4, forms=3)[1]
    config = config_for("epr", **{**QUICK, "base": str(bag)})
    Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).score()
    asked = len(judge.scored)
    other = config_for("epr", **{**QUICK, "base": str(bag), "batch_size": 4})
    with pytest.raises(UsageError, match="batch_size was 8"):
        Training(corpus_of_tasks([task], other), judge, tmp_path / "out", other).prepare()
    again = Training(corpus_of_tasks([task], other), judge, tmp_path / "out", other, restart=True)
    again.score()
    assert len(judge.scored) == asked
    again.run()
    with pytest.raises(DataError, match="holds a retriever of another training"):
        Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).prepare()


def test_a_folder_with_something_else_is_left_alone(mode_task, bag, tmp_path) -> None:
    task, judge = mode_task
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    config = config_for("epr", **{**QUICK, "base": str(bag)})
    with pytest.raises(DataError, match="holds something else"):
        Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config).prepare()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out.work").exists()
