from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.cli._kit import conditions
from iclkit.cli._train import command
from iclkit.embed import Retriever, RetrieverFormat, load_embedder
from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.records import Query, fold_text
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder, redundancy_task
from iclkit.trainers import CEIL, Feedback, Ledger, Miner, RetrieverBatch, Session, Training, corpus_of_tasks, preset
from iclkit.trainers._ceil import ScoredSets, draw_subsets, first_stage

from .conftest import config_for

torch = pytest.importorskip("torch")


def session(folder, lm=None, document="input", **changes):
    """A training of CEIL on top of a retriever, up to where a model would be loaded."""
    task, judge = redundancy_task(48, 8)
    given = {"queries": 10, "held_out": 6, "report": 4, "neighbors": 8, "subsets": 7, "document": "input"}
    config = preset("ceil", **{**given, **changes})
    corpus = corpus_of_tasks([task], config)
    feedback = Feedback(lm or judge, Ledger(folder / "ledger.db"))
    miner = Miner(corpus, config.seed, Retriever(HashEmbedder(), RetrieverFormat(document), {}))
    return Session(config, corpus, feedback, miner, RetrieverFormat(config.document), folder, say=lambda text: None)


@settings(max_examples=250)
@given(n=st.integers(0, 9), size=st.integers(1, 4), count=st.integers(2, 30), seed=st.integers(0, 999))
def test_subsets_are_distinct_sorted_and_have_the_nearest_among_them(n, size, count, seed):
    found = draw_subsets(n, size, count, np.random.default_rng(seed))
    assert len(found) == len({*found}) == min(count, math.comb(n, size))
    for some in found:
        assert some == tuple(sorted({*some}))
        assert len(some) == size
        assert 0 <= some[0] <= some[-1] < n
    if n >= size:
        assert found[0] == tuple(range(size))


def test_subsets_are_of_the_querys_neighbours_and_never_give_it_away(tmp_path):
    s = session(tmp_path, FakeLM())
    for one in CEIL().gather(s, 0, None):
        question = fold_text(s.corpus.examples[one.query].text)
        assert all(fold_text(s.corpus.examples[r].text) != question for r in one.neighbors)
        assert len(one.neighbors) == len({*one.neighbors}) == 8
        assert (0, 1, 2) in {some for some, _ in one.subsets}
        values = [v for _, v in one.subsets]
        assert values == sorted(values, reverse=True)
        assert len(values) == 7


def test_the_most_relevant_stands_next_to_the_query(tmp_path):
    lm = FakeLM()
    s = session(tmp_path, lm)
    asked = {r.context for r in CEIL().gather(s, 0, None) and lm.scored}
    (one, *_) = CEIL().gather(s, 0, None)
    for some, _ in one.subsets:
        shown = [s.corpus.examples[one.neighbors[p]].text for p in some]
        (prompt,) = [
            a for a in asked if s.corpus.examples[one.query].text in a.split("\n\n")[-1] and all(t in a for t in shown)
        ]
        places = [prompt.index(f"Input: {t}") for t in shown]
        assert places == sorted(places, reverse=True)


def naive_loss(query, items, subsets, ranks, trade_off):
    """CEIL's margin loss as the paper words it, one pair at a time."""
    query, items = query / np.linalg.norm(query), items / np.linalg.norm(items, axis=1, keepdims=True)
    relevance, similarity = (1 + items @ query) / 2, (1 + items @ items.T) / 2
    kernel = np.exp(relevance / (2 * trade_off))[:, None] * similarity * np.exp(relevance / (2 * trade_off))[None]
    scores = np.array([np.linalg.slogdet(kernel[np.ix_(some, some)])[1] for some in subsets])
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    total = 0.0
    for gap in range(1, len(subsets)):
        lacks = []
        for better in range(len(subsets) - gap):
            worse = better + gap
            lack = max(0.0, gap / len(subsets) - (scaled[better] - scaled[worse]))
            lacks.append(lack if ranks[better] < ranks[worse] else 0.0)
        total += sum(lacks) / len(lacks)
    return total


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 3), trade_off=st.sampled_from([0.1, 0.5, 2.0]), ties=st.booleans())
def test_a_batchs_loss_is_the_mean_of_a_naive_one_and_padding_is_left_out(small_session, seed, b, trade_off, ties):
    rng, s = np.random.default_rng(seed), small_session
    size, dim = 2, 12
    s.config = preset("ceil", shots=size, trade_off=trade_off, queries=10, held_out=6, report=4, max_steps=1,
                      batch_size=8, document="input")  # fmt: skip
    rows = s.corpus.tasks[0].rows
    gathered = []
    for query in rng.choice(rows, b, replace=False).tolist():
        n = int(rng.integers(4, 7))
        near = tuple(int(r) for r in rng.choice(rows, n, replace=False))
        subsets = draw_subsets(n, size, int(rng.integers(3, 7)), rng)
        values = sorted((rng.integers(0, 3, len(subsets)) if ties else rng.standard_normal(len(subsets))), reverse=True)
        gathered.append(ScoredSets(query, near, tuple(zip(subsets, map(float, values), strict=True))))
    used = [one for one in gathered if one.subsets[0][1] > one.subsets[-1][1]]
    batches = CEIL().batches(s, gathered)
    assert sum(map(len, batches)) == len(used)
    if not used:
        return
    (lessons,) = batches
    assert len({(len(x.documents), len(x.values)) for x in lessons}) == 1
    vector = {r: np.random.default_rng([seed, r]).standard_normal(dim) for r in rows.tolist()}
    asked = {r: np.random.default_rng([seed, r, 1]).standard_normal(dim) for r in rows.tolist()}
    queries = torch.tensor(np.stack([asked[x.query] for x in lessons]), requires_grad=True)
    documents = torch.tensor(np.stack([[vector[d] for d in x.documents] for x in lessons]))
    batch = RetrieverBatch(torch.zeros(0), torch.tensor([x.values for x in lessons]), *2 * [torch.zeros(0)])
    loss = CEIL().loss(s.config, queries, documents, batch)
    expected = []
    for one in used:
        values = [v for _, v in one.subsets]
        ranks = [1 + sum(w > v for w in values) for v in values]
        items = np.stack([vector[d] for d in one.neighbors])
        expected.append(naive_loss(asked[one.query], items, [x for x, _ in one.subsets], ranks, trade_off))
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)
    loss.backward()
    assert torch.isfinite(queries.grad).all()


@pytest.fixture(scope="module")
def small_session(tmp_path_factory):
    return session(tmp_path_factory.mktemp("ceil"), FakeLM())


def test_what_was_scored_is_never_asked_again(tmp_path):
    first = session(tmp_path, FakeLM())
    scored = CEIL().gather(first, 0, None)
    again = session(tmp_path, FakeLM())
    assert CEIL().gather(again, 0, None) == scored
    assert not again.feedback.lm.scored
    ((course, asks),) = CEIL().prompts(again)
    assert first.feedback.computed == 10 * 7
    assert again.feedback.estimate(course, asks).calls == 4 * 6 * 3  # the random sets of held-out queries


def test_a_base_that_reads_documents_in_another_way_is_refused(tmp_path):
    with pytest.raises(UsageError, match="document=input"):
        CEIL().gather(session(tmp_path, FakeLM(), document="input+output"), 0, None)


def test_the_first_stage_is_epr_on_the_same_data_with_the_same_encoder():
    config = preset("ceil", seed=3, queries=17, base="somewhere", candidates="random:9", document="input")
    epr = first_stage(config)
    assert (epr.method, epr.seed, epr.queries, epr.base) == ("epr", 3, 17, "somewhere")
    assert (epr.candidates, epr.document, epr.towers) == ("random:9", "input", 1)
    assert not epr.freeze_documents
    paper = preset("ceil", "paper")
    assert first_stage(paper).freeze_documents  # as the released code does
    assert not first_stage(replace(paper, freeze_documents=False)).freeze_documents


def test_the_best_trade_off_on_held_out_queries_is_kept_and_chosen_with(mode_task, bag, tmp_path):
    task, judge = mode_task
    config = preset(
        "ceil", base=str(bag), queries=10, held_out=6, report=4, shots=2, neighbors=6, subsets=4, candidates="random:6",
        trade_offs=(0.02, 5.0), max_steps=3, batch_size=4, learning_rate=2e-2,
    )  # fmt: skip
    heard = []
    with Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config, say=heard.append) as training:
        announced = training.later()
        trained = training.run()
    (facts,) = trained.card["training"]
    gains = {known["trade_off"]: gain for known, gain in facts["tried"]}
    assert {*gains} == {0.02, 5.0}
    best = max(gains, key=gains.get)
    assert facts["settings"] == {"trade_off": best}
    assert facts["best"] == gains[best]
    assert trained.card["selector"] == f"ceil,trade_off={best:g}"
    assert trained.card["config"]["trade_off"] == best
    assert any(line.startswith(f"kept: trade_off={best}") for line in heard)
    work = tmp_path / "out.work"
    kept, other = ([*gains].index(x) for x in (best, next(x for x in gains if x != best)))
    weights = [(work / f"model-0{n}" / "model.safetensors") for n in ("", f"-{kept}", f"-{other}")]
    whole, same, another = (next(p.parent.rglob("*.safetensors")).read_bytes() for p in weights)
    assert whole == same != another
    one = replace(config, trade_offs=())
    alone = Training(corpus_of_tasks([task], one), judge, tmp_path / "one", one)
    assert announced > alone.later()
    alone.close()
    none = replace(config, held_out=0)
    without = Training(corpus_of_tasks([task], none), judge, tmp_path / "none", none)
    with pytest.raises(UsageError, match="trade_offs are told apart on held-out queries"):
        without.prepare()


def test_the_documented_command_for_epr_at_full_size_runs_what_ceil_would_run():
    """What stands in the guide is parsed as the command line parses it."""
    text = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(c, comments=True)
        for c in re.findall(r"^iclkit (train .*)$", text.replace("\\\n", " "), re.MULTILINE)
    ]
    made = {}
    for _, *words in commands:
        given = command.make_context("train", words).params
        changed = conditions(given["settings"], "--set")
        made[given["method"], given["out"].name] = preset(
            given["method"], given["preset_name"], seed=given["seed"], **changed
        )
    assert {*made} == {("se2", "se2-paper"), ("epr", "epr-paper"), ("ceil", "ceil-paper")}
    assert made["se2", "se2-paper"] == preset("se2", "paper")
    assert made["ceil", "ceil-paper"] == preset("ceil", "paper", base="epr-paper")
    assert made["epr", "epr-paper"] == first_stage(preset("ceil", "paper"))


TINY = {"learning_rate": 2e-2, "temperature": 0.1, "batch_size": 16, "evaluate_every": 100, "patience": 0,
        "held_out": 20, "report": 4, "document": "input"}  # fmt: skip


def test_it_trains_epr_first_goes_on_from_it_and_leaves_the_documents_where_they_were(encoders, tmp_path):
    task, judge = redundancy_task(80, 8)
    base = encoders.bag_encoder(tmp_path / "bag", encoders.texts_of(task))
    config = config_for("ceil", **{**TINY, "base": str(base), "queries": 40, "shots": 2, "max_steps": 6,
                               "candidates": "random:12", "evaluate_every": 3})  # fmt: skip
    said: list[str] = []
    training = Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config, say=said.append)
    trained = training.run()
    assert any("starts from EPR" in line for line in said)
    assert "epr" in trained.card["facts"] or "epr" in training.session.facts
    epr = load_embedder(str(tmp_path / "out.work" / "epr" / "model"), dtype="fp32")
    ceil = load_embedder(str(trained.folder), dtype="fp32")
    texts = [e.text for e in task.train[:20]]
    assert np.allclose(ceil.encode_documents(texts), epr.encode_documents(texts), atol=1e-5)
    assert not np.allclose(ceil.encode_queries(texts), epr.encode_queries(texts), atol=1e-3)


@pytest.mark.slow
def test_where_redundancy_hurts_ceil_beats_epr_and_plain_dpp(encoders, tmp_path):
    task, judge = redundancy_task(320, 60)
    base = encoders.bag_encoder(tmp_path / "bag", encoders.texts_of(task))

    def train(method, base, **changes):
        config = config_for(method, base=str(base), **{**TINY, "queries": 260, "candidates": "random:40", **changes})
        Training(corpus_of_tasks([task], config), judge, tmp_path / method, config).run()
        return load_embedder(str(tmp_path / method), dtype="fp32")

    epr = train("epr", base, epochs=20, positives=3, negatives=20, hard_negatives=4)
    ceil = train("ceil", tmp_path / "epr", shots=2, neighbors=24, subsets=40, learning_rate=1e-2, epochs=15)
    view = Pool.of(task.train).view()

    def chance(spec, embedder):
        chooser = make_selector(spec).fit(view, Kit(embedder))
        found = chooser.select_many([Query(e.input) for e in task.test], 2)
        shown = [[view.examples_of([i])[0] for i in s.ids] for s in found]
        return np.mean([judge.chance(e.text, own) for e, own in zip(task.test, shown, strict=True)])

    ours = chance("ceil", ceil)
    others = {
        "epr": chance("knn", epr),
        "dpp on epr": chance("dpp", epr),
        "plain dpp": chance("dpp", load_embedder(str(base))),
        "knn": chance("knn", load_embedder(str(base))),
        "bm25": chance("bm25", None),
    }
    print(f"ceil {ours:.2f}, {others}")
    assert ours > max(others.values()) + 0.15
