"""What a training needs is looked at before the first prompt is asked and the first file is made."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iclkit.datasets import Task
from iclkit.errors import DataError, ModelError, NeedError, RunError, UnknownName, UsageError
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import FakeLM, HashEmbedder
from iclkit.trainers import METHODS, AssumedLM, Feedback, FeedbackPrompt, Ledger, Training, corpus_of_tasks, preset
from iclkit.trainers._ceil import first_stage
from iclkit.trainers._fit import common_arguments, load_encoder, out_of_patience
from iclkit.trainers._report import report_prompts
from iclkit.trainers._train import training_keys

from .conftest import config_for

FEW = {"candidates": "random:8", "queries": 12, "held_out": 3, "report": 4, "max_steps": 4, "batch_size": 4,
       "learning_rate": 1e-2, "evaluate_every": 2, "temperature": 0.1, "list_size": 4, "positives": 2, "negatives": 2,
       "hard_negatives": 1, "reward_negatives": 2, "reward_max_steps": 2, "reward_batch_size": 4, "neighbors": 6,
       "subsets": 5, "random_negatives": 2, "iterations": 1}  # fmt: skip


def settings(method: str, base: Path, reward: Path, **more: Any) -> Any:
    shots = {"shots": 2} if method in ("se2", "ceil") else {}
    return config_for(method, **{**FEW, **shots, "base": str(base), "reward_base": str(reward), **more})


def prepared(method: str, task: Any, lm: Any, out: Path, base: Path, reward: Path, **more: Any) -> Training:
    changes = {k: more.pop(k) for k in [*more] if k not in ("dry", "restart", "tracker", "say", "bar", "ledger")}
    config = settings(method, base, reward, **changes)
    return Training(corpus_of_tasks([task], config), lm, out, config, **more).prepare()


# -- what is announced is what is asked and kept --


@pytest.mark.parametrize("method", METHODS)
def test_the_number_announced_is_asked_and_kept_and_asked_no_more(method, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    first = prepared(method, task, judge, tmp_path / "out", bag, bert)
    cost = first.estimate()
    before = len(judge.scored)
    left = first.score()
    asked = {(r.context, r.continuation) for r in judge.scored[before:]}
    labels = len(task.labels)
    assert len(judge.scored) - before == len(asked) == cost.prompts * labels == cost.requests == cost.calls
    assert left == 0
    assert len(first.session.feedback.ledger) == cost.prompts
    again = prepared(method, task, judge, tmp_path / "out", bag, bert)
    assert again.estimate().calls == 0
    before = len(judge.scored)
    again.run()
    later = {(r.context, r.continuation) for r in judge.scored[before:]}
    assert not later & asked
    assert len(later) <= again.later() * labels


@pytest.mark.parametrize("method", METHODS)
def test_prompts_that_do_not_fit_are_counted_as_left_and_not_asked_again(method, bag, bert, tmp_path) -> None:
    rows = [Example(f"word {i}", "yes" if i % 2 else "no") for i in range(60)]
    rows.append(Example("long " * 400, "yes"))
    task = Task("t", "classification", tuple(rows), (), Template(), labels=("yes", "no"))
    lm = FakeLM(context_size=60)
    some = prepared(
        method, task, lm, tmp_path / "out", bag, bert, candidates="random:40", queries=8, learning_rate=1e-3
    )
    cost = some.estimate()
    left = some.score()
    assert cost.prompts == len(some.session.feedback.ledger) + left
    assert left == some.session.feedback.skipped


def test_the_report_asks_no_more_than_was_said(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    for method in ("epr", "se2"):
        made = prepared(method, task, judge, tmp_path / method, bag, bert, max_steps=1)
        s, meant = made.session, made.method.selector(made.config)
        made.score()
        known = len(s.feedback.ledger)
        made.run()
        asked = len(s.feedback.ledger) - known
        assert asked <= report_prompts(s, meant) + made.method.evaluation_prompts(s) == made.later()
        assert asked > made.later() / 3


def test_nothing_is_opened_before_prepare_and_the_ledger_is_closed_at_the_end(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    config = settings("epr", bag, bert)
    training = Training(corpus_of_tasks([task], config), judge, tmp_path / "out", config)
    assert not list(tmp_path.iterdir())
    with training:
        ledger = training.session.feedback.ledger
        assert training.prepare().session.feedback.ledger is ledger
        assert (tmp_path / "out.work" / "ledger.db").is_file()
        assert training.estimate().calls > 0
    with pytest.raises(RunError, match="closed"):
        len(ledger)
    assert training.estimate().calls > 0  # opened again


def test_a_ledger_of_another_lm_template_or_pool_is_named_as_such(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    ledger = tmp_path / "shared.db"
    prepared("epr", task, judge, tmp_path / "first", bag, bert, ledger=ledger).score()

    def said(task: Any, lm: Any, **more: Any) -> list[str]:
        heard = list[str]()
        prepared(
            "epr", task, lm, tmp_path / "b", bag, bert, ledger=ledger, dry=True, say=heard.append, **more
        ).estimate()
        return [line for line in heard if "shared.db holds" in line]

    assert said(task, judge) == []
    (line,) = said(task, FakeLM())
    assert line.startswith(f"note: {ledger} holds ")
    assert line.endswith("scores, and none of these prompts: they are by another LM, or by fake in another precision")
    (line,) = said(replace(task, template=Template("Q: {input}\nA: {output}")), judge)
    assert line.endswith("they are with another template")
    (line,) = said(replace(task, train=tuple(replace(e, input=f"{e.input} again", id="") for e in task.train)), judge)
    assert line.endswith("of other examples: another pool, or queries or candidates drawn otherwise")


# -- what a training costs is said before its models are here --


@pytest.mark.parametrize("method", METHODS)
def test_the_presets_of_papers_are_priced_without_a_model(method, mode_task, tmp_path, monkeypatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr("iclkit.trainers._prepare.shutil.disk_usage", lambda _: usage(10**12, 0, 10**12))
    lm = AssumedLM("EleutherAI/gpt-neo-2.7B")
    config = preset(method, "paper", queries=4, held_out=1, report=2)
    with Training(corpus_of_tasks([mode_task[0]], config), lm, tmp_path / "out", config, dry=True) as training:
        cost = training.estimate()
        per_query = {"epr": 50, "udr": 50, "llm-r": 100, "se2": 150, "ceil": 100}[method]
        assert cost.prompts >= per_query * 4
        assert cost.tokens_computed > 10 * cost.prompts
        two_berts = 2 * 4 * 109_482_240  # fp32
        assert training.disk.peak > (two_berts if config.towers == 2 else two_berts / 2)
        about = "\n".join(training.assumed)
        assert f"{config.base} is not on this machine: 109 million weights, as its card says" in about
        assert ("electra" in about) == (method == "llm-r")
        assert ("its neighbors are drawn at random" in about) == (method == "ceil")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="is not on this machine"):
        lm.score([])


# -- everything is found out before the first prompt --


def untouched(folder: Path, lm: Any) -> None:
    assert lm.scored == []
    assert sorted(p.name for p in folder.iterdir()) == []


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("llm-r", {"reward_base": "nowhere/at-all/x"}, ModelError, "no model folder nowhere/at-all/x"),
    ("llm-r", {"reward_negatives": 30}, DataError, "no training query has candidates enough for llm-r: at most 8"),
    ("epr", {"hard_negatives": 20, "negatives": 20}, DataError, "hard_negatives=20; lower these, mine more"),
    ("udr", {"list_size": 9}, DataError, "at most 8 are found by candidates=random:8.*list_size=9"),
    ("se2", {"candidates": "random:1"}, DataError, "at most 1 candidates for a query.*needs two candidates"),
    ("ceil", {"shots": 7, "neighbors": 6}, DataError, "at most 6 neighbors for a query, and ceil needs two sets"),
    ("ceil", {"candidates": "random:1"}, DataError, "no training query has candidates enough for epr"),
    ("epr", {"candidates": "mdl:5"}, UsageError, "'mdl', which needs an LM"),
    ("epr", {"candidates": "rerank:5"}, UsageError, "'rerank', which needs a reranker"),
    ("epr", {"tracker": "wandbb"}, UnknownName, "Did you mean 'wandb'"),
    ("epr", {"tracker": "comet_ml"}, NeedError, "tracker comet_ml cannot be used"),
]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(("method", "changes", "error", "says"), WRONG)
def test_what_will_fail_fails_before_anything_is_asked(
    method, changes, error, says, dry, mode_task, bag, bert, tmp_path
) -> None:
    lm = FakeLM()
    with pytest.raises(error, match=says):
        prepared(method, mode_task[0], lm, tmp_path / "out", bag, bert, dry=dry, **changes)
    untouched(tmp_path, lm)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
def test_a_precision_that_this_machine_has_not_is_found_before_anything_is_asked(
    mode_task, bag, bert, tmp_path
) -> None:
    lm = FakeLM()
    with pytest.raises(UsageError, match="dtype=fp16"):
        prepared("epr", mode_task[0], lm, tmp_path / "out", bag, bert, dtype="fp16")
    untouched(tmp_path, lm)


@pytest.mark.parametrize("method", ["epr", "llm-r"])
@pytest.mark.parametrize("how", ["cut", "empty", "no header"])
def test_a_damaged_base_is_found_before_anything_is_asked(method, how, mode_task, bag, bert, tmp_path) -> None:
    lm, broken = FakeLM(), tmp_path / "models" / "broken"
    shutil.copytree(bert, broken)
    weights = broken / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "no header": b"\xff" * 100}[how])
    (tmp_path / "work").mkdir()
    models = (bag, broken) if method == "llm-r" else (broken, bag)
    with pytest.raises(ModelError, match="broken"):
        prepared(method, mode_task[0], lm, tmp_path / "work" / "out", *models)
    untouched(tmp_path / "work", lm)


def test_a_place_that_cannot_be_written_or_is_too_full_is_found_before_anything_is_asked(
    mode_task, bag, bert, tmp_path, monkeypatch
) -> None:
    lm = FakeLM()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is a file\); give another --out"):
        prepared("epr", mode_task[0], lm, tmp_path / "file" / "out", bag, bert)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("iclkit.trainers._prepare.shutil.disk_usage", lambda _: usage(10**12, 10**12, 10_000_000))
    with pytest.raises(
        DataError, match=r"has 10 MB free, and the training takes at most .* written in all; free space"
    ):
        prepared("epr", mode_task[0], lm, tmp_path / "out", bag, bert)
    monkeypatch.setattr("iclkit.trainers._prepare.os.access", lambda *_: False)
    with pytest.raises(DataError, match=r"is not writable\); give another --out"):
        prepared("epr", mode_task[0], lm, tmp_path / "out", bag, bert)
    (tmp_path / "file").unlink()
    untouched(tmp_path, lm)


def test_an_answer_that_cannot_be_scored_is_found_before_anything_is_asked(bag, bert, tmp_path) -> None:
    rows = [Example(f"word {i}", "yes" if i % 2 else "no") for i in range(40)]
    odd = Task("t", "classification", tuple(rows), (Example("x", "perhaps"),), Template(), labels=("yes", "no"))
    lm = FakeLM()
    with pytest.raises(DataError, match=r"output 'perhaps' is none of the labels yes, no.*fix or remove the example"):
        prepared("epr", odd, lm, tmp_path / "out", bag, bert)
    choices = replace(odd, labels=(), test=(Example("x", "c", choices=("a", "b")),))
    with pytest.raises(DataError, match="output 'c' is none of the labels a, b"):
        prepared("epr", choices, lm, tmp_path / "out", bag, bert)
    untouched(tmp_path, lm)


def test_a_server_without_log_probabilities_teaches_nothing_and_says_so(mode_task, bag, bert, tmp_path) -> None:
    lm = FakeLM()
    lm.scoring = "generate"
    with pytest.raises(UsageError, match="tells no log-probabilities"):
        prepared("epr", mode_task[0], lm, tmp_path / "out", bag, bert)
    untouched(tmp_path, lm)


def test_a_base_that_reads_documents_otherwise_is_found_in_a_dry_run(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    epr = prepared("epr", task, judge, tmp_path / "epr", bag, bert, document="input").run()
    for dry in (True, False):
        with pytest.raises(UsageError, match=r"reads documents as 'input'.*set document=input"):
            prepared("ceil", task, FakeLM(), tmp_path / "ceil", epr.folder, bert, dry=dry)
    two = prepared("epr", task, judge, tmp_path / "two", bag, bert, towers=2).run()
    for other, remedy in (
        ({"similarity": "dot", "towers": 2}, "similarity=cos"),
        ({"towers": 1}, "towers=2"),
        ({"similarity": "dot"}, "towers=2, similarity=cos"),
    ):
        with pytest.raises(UsageError, match=f"has two towers and goes on as they are; set {remedy}$"):
            prepared("epr", task, FakeLM(), tmp_path / "next", two.folder, bert, **other)
    assert not [*tmp_path.glob("ceil*"), *tmp_path.glob("next*")]


def test_two_towers_of_one_pooling_are_not_trained_as_if_they_had_another(bert, tmp_path) -> None:
    load_encoder(preset("epr", towers=2, pooling="cls"), bert).save_pretrained(str(tmp_path / "two"))
    for same in ("own", "cls"):
        load_encoder(preset("epr", towers=2, pooling=same), tmp_path / "two")
    with pytest.raises(UsageError, match=r"goes on as they are; set pooling=cls$"):
        load_encoder(preset("epr", towers=2, pooling="mean"), tmp_path / "two")


# -- the base --


def test_a_base_kept_in_half_precision_is_trained_in_full(bert, mode_task, tmp_path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(str(bert)).to(torch.bfloat16).save_pretrained(str(tmp_path / "half"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path / "half" / name)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    model = load_encoder(settings("epr", bert, bert), tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# -- judging and keeping --


def test_the_papers_are_followed_in_what_is_kept_and_how_often_is_judged() -> None:
    papers = {m: preset(m, "paper") for m in METHODS}
    assert {m: c.keep for m, c in papers.items()} == {
        "epr": "last", "udr": "last", "llm-r": "last", "se2": "best", "ceil": "best",
    }  # fmt: skip
    assert {m: c.patience for m, c in papers.items()} == {"epr": 0, "udr": 0, "llm-r": 0, "se2": 0, "ceil": 5}
    assert (papers["ceil"].evaluate_every, papers["ceil"].evaluations) == (100, 0)
    assert papers["se2"].evaluations == papers["se2"].epochs  # once an epoch
    assert all(c.checkpoints <= 10 for c in papers.values())
    stage = first_stage(papers["ceil"])
    assert (stage.freeze_documents, stage.towers, stage.keep, stage.patience) == (True, 1, "best", 5)
    assert not first_stage(replace(papers["ceil"], freeze_documents=False)).freeze_documents


def test_the_number_of_checkpoints_alone_makes_no_other_training() -> None:
    config = preset("epr")
    assert preset("epr", checkpoints=9).identity() == config.identity()
    for changed in ({"keep": "last"}, {"evaluations": 7}, {"hard_negatives": 2}):
        assert preset("epr", **changed).identity() == config.identity() | changed


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_model_that_is_kept_is_the_best_or_the_last(keep, mode_task, bag, bert, tmp_path, monkeypatch) -> None:
    from iclkit.trainers import _epr

    task, judge = mode_task
    gains = iter([0.0, 0.1, 0.5, 0.3, 0.2])
    seen: dict[float, torch.Tensor] = {}

    def measured(s: Any, model: Any, parts: Any) -> float:
        gain = next(gains)
        seen[gain] = next(model.parameters()).detach().clone()
        return gain

    monkeypatch.setattr(_epr, "candidate_gain", measured)
    some = prepared("epr", task, judge, tmp_path / "out", bag, bert, max_steps=8, patience=0, keep=keep)
    card = some.run().card
    kept = {"best": 0.5, "last": 0.2}[keep]
    (facts,) = card["training"]
    assert facts["judged"] == [[2, 0.1], [4, 0.5], [6, 0.3], [8, 0.2]]
    assert (facts["kept"], facts["best"]) == ({"best": 4, "last": 8}[keep], kept)
    model = load_encoder(some.config, tmp_path / "out")
    assert torch.equal(next(model.parameters()), seen[kept])


def test_the_last_model_is_judged_though_no_judgement_is_due(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    some = prepared("epr", task, judge, tmp_path / "out", bag, bert, max_steps=5, patience=0, keep="last")
    (facts,) = some.run().card["training"]
    assert [step for step, _ in facts["judged"]] == [2, 4, 5]
    assert facts["best"] == facts["judged"][-1][1]


def test_without_held_out_queries_the_last_model_is_kept(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    (facts,) = (
        prepared("epr", task, judge, tmp_path / "out", bag, bert, max_steps=20, held_out=0).run().card["training"]
    )
    assert (facts["steps"], facts["kept"], facts["judged"], facts["best"]) == (20, 20, [], None)


def test_patience_counts_judgements_since_the_best() -> None:
    assert not out_of_patience([], 3)
    assert [out_of_patience([0.1, 0.2, 0.2, 0.1][:n], 2) for n in range(1, 5)] == [False, False, False, True]


def test_a_long_training_writes_few_checkpoints_and_judges_a_bounded_number_of_times(
    mode_task, bag, bert, tmp_path, monkeypatch
) -> None:
    from iclkit.trainers import _fit

    task, judge = mode_task
    sealed: list[str] = []
    seal = _fit.seal
    monkeypatch.setattr(_fit, "seal", lambda folder: (sealed.append(folder.name), seal(folder)))
    changes = {"max_steps": 120, "evaluate_every": 1, "evaluations": 6, "checkpoints": 3, "patience": 0}
    some = prepared("epr", task, judge, tmp_path / "out", bag, bert, **changes)
    (facts,) = some.run().card["training"]
    assert [step for step, _ in facts["judged"]] == [20, 40, 60, 80, 100, 120]
    assert sealed == ["checkpoint-40", "checkpoint-80", "checkpoint-120", "model-0.part"]
    assert not list((tmp_path / "out.work").rglob("checkpoint-*"))  # gone once the model is there


def test_the_disk_that_was_said_is_not_exceeded(mode_task, bag, bert, tmp_path, monkeypatch) -> None:
    from iclkit.trainers import _fit, _llm_r

    def size(folder: Path) -> int:
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    for method in ("epr", "llm-r", "ceil"):
        most = [0]
        place = tmp_path / method
        changes = {"iterations": 2} if method == "llm-r" else {}
        some = prepared(method, mode_task[0], mode_task[1], place / "out", bert, bert, learning_rate=1e-4, **changes)

        def looked(real: Any, place: Path = place, most: list[int] = most) -> Any:
            def look(*args: Any) -> Any:
                most[0] = max(most[0], size(place))
                return real(*args)

            return look

        with monkeypatch.context() as patch:
            for module in (_fit, _llm_r):
                patch.setattr(module, "drop", looked(_fit.drop))
            patch.setattr(_fit, "seal", looked(_fit.seal))
            some.run()
        assert some.disk.peak / 4 < most[0] < some.disk.peak + (1 << 20)
        assert some.disk.written >= some.disk.peak / 4


# -- numbers that are none --


@pytest.mark.parametrize("method", ["epr", "llm-r", "se2", "ceil"])
def test_a_training_that_diverges_stops_and_saves_nothing(method, mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    rates = {"learning_rate": 1e38, "temperature": 0.1}
    some = prepared(method, task, judge, tmp_path / "out", bag, bert, max_steps=12, similarity="dot", **rates)
    with pytest.raises(RunError, match=r"not finite|a loss of"):
        some.run()
    assert not (tmp_path / "out").exists()
    for file in (tmp_path / "out.work").rglob("*.safetensors"):
        from safetensors.torch import load_file

        assert all(bool(v.isfinite().all()) for v in load_file(file).values())


def test_a_reward_model_that_diverges_stops_and_saves_nothing(mode_task, bag, bert, tmp_path) -> None:
    task, judge = mode_task
    changes = {"reward_learning_rate": 1e38, "reward_max_steps": 8}
    with pytest.raises(RunError, match="reward_learning_rate"):
        prepared("llm-r", task, judge, tmp_path / "out", bag, bert, **changes).run()
    assert not list((tmp_path / "out.work").rglob("rewards.json"))


def test_a_reward_base_with_a_layer_missing_is_refused_by_name(bert, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from iclkit.trainers._reward import load_reward

    folder = shutil.copytree(bert, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "encoder.layer.1." not in k}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = preset("llm-r", base=str(bert), reward_base=str(folder))
    with pytest.raises(ModelError, match=r"lack .*: bert\.encoder\.layer\.1\."):
        load_reward(config, folder)
    load_reward(config, bert)  # a new head and pooler are meant


def test_the_papers_warm_up_holds_unless_it_is_most_of_the_training() -> None:
    def warm(config: Any, steps: int) -> int:
        arguments = common_arguments(config, Path("x"), steps, "none", warmup_steps=config.warmup_steps)
        return int(arguments["warmup_steps"])

    paper = {method: preset(method, "paper") for method in METHODS}
    assert {m: warm(c, 11_010) for m, c in paper.items()} == {
        "epr": 1237, "udr": 500, "llm-r": 400, "se2": 1000, "ceil": 1300,
    }  # fmt: skip
    assert {warm(c, 60) for c in paper.values()} == {6}
    assert warm(preset("epr"), 200) == 20


def test_what_decides_a_training_stands_in_its_identity_and_a_rename_does_not_change_it() -> None:
    others: dict[str, Any] = {"warmup_steps": 5, "mini_batch": 4, "refill": True, "reward_warmup_steps": 5}
    others |= {"mask_labels": True, "random_from": "middle", "rounds": "apart", "weights": "spread"}
    others |= {"gather_across_devices": True}
    for method in METHODS:
        config = preset(method)
        assert config.identity().items() <= config.as_dict().items()
        later = (
            config.as_dict().keys() - config.identity().keys() - {"checkpoints", "trade_offs"}
        )  # came after trainings were begun
        for name in later:
            assert replace(config, **{name: others[name]}).identity() == {**config.identity(), name: others[name]}
    assert preset("ceil", trade_offs=(0.1, 1.0)).identity() == {**preset("ceil").identity(), "trade_offs": [0.1, 1.0]}


def test_templates_and_the_base_make_another_training_and_an_earlier_key_is_still_known(
    mode_task, bag, bert, tmp_path
) -> None:
    task, judge = mode_task
    config = settings("epr", bag, bert)
    corpus = corpus_of_tasks([task], config)
    base = HashEmbedder(8)
    key, former = training_keys(config, corpus, judge, base)
    assert training_keys(config, corpus, judge, HashEmbedder(16))[0] != key
    other = corpus_of_tasks([replace(task, template=Template("{input} is {output}"))], config)
    assert training_keys(config, other, judge, base)[0] != key
    (chat,) = training_keys(config, corpus_of_tasks([task], config, chat=True), judge, base)
    assert chat not in (key, former)
    made = Training(corpus, judge, tmp_path / "out", config)
    made.prepare()
    note = tmp_path / "out.work" / "training.json"
    noted = json.loads(note.read_text())
    assert noted["key"] == made.key
    made.close()
    note.write_text(json.dumps({**noted, "key": training_keys(config, corpus, judge, made.base)[1]}))
    Training(corpus, judge, tmp_path / "out", config).prepare().close()
    assert json.loads(note.read_text())["key"] == made.key


def test_prompts_are_chat_turns_where_that_is_wanted_and_have_scores_of_their_own() -> None:
    rows = [Example(f"word {i}", "yes" if i % 2 else "no") for i in range(60)]
    task = Task("t", "classification", tuple(rows), (), Template(chat=True, system="Be brief."), labels=("yes", "no"))
    config, lm = preset("epr", queries=5, held_out=2, report=2), FakeLM()
    ledger = Ledger(":memory:")
    for chat in (False, True):
        (of_task,) = corpus_of_tasks([task], config, chat=chat).tasks
        assert of_task.template.chat is chat
        feedback = Feedback(lm, ledger)
        assert feedback.estimate(of_task, [FeedbackPrompt(rows[0], (rows[1],))]).calls == 2
        assert feedback.score(of_task, [FeedbackPrompt(rows[0], (rows[1],))]) != [None]
    plain, turns = lm.scored[0].context, lm.scored[2].context
    assert "Be brief." in turns
    assert "Be brief." not in plain


# -- what is too long for the encoder --


def cut_notes(method: str, task: Any, out: Path, base: Path, **more: Any) -> list[str]:
    said: list[str] = []
    with prepared(method, task, FakeLM(), out, base, base, say=said.append, **more):
        return [line for line in said if "the rest is ignored" in line]


@pytest.mark.parametrize("method", METHODS)
def test_what_the_encoder_will_not_read_is_said_before_the_first_prompt(method, mode_task, bert, tmp_path) -> None:
    task, _ = mode_task
    notes = cut_notes(method, task, tmp_path / "out", bert, max_tokens=8, instruct="none")
    document = max(len(f"{e.text}\t{e.output}".split()) + 2 for e in task.train)
    assert document > 8
    demonstrations = next(n for n in notes if "demonstrations" in n)
    assert f" of {len(task.train)} demonstrations " in f" {demonstrations}"
    assert f"longer than 8 tokens (max_tokens=8; the longest: {document})" in demonstrations
    assert f"--set max_tokens={document}, or as many as the base takes, reads more" in demonstrations
    assert any("random demonstrations" in n for n in notes) == (method == "se2")
    whole = cut_notes(method, task, tmp_path / "whole", bert, max_tokens=64)
    assert whole == []


def test_a_base_that_takes_less_than_max_tokens_says_so(encoders, tmp_path) -> None:
    rows = tuple(Example(f"word{n} " * 90, "a" if n % 2 else "b") for n in range(40))
    long = Task("long", "classification", rows, (), Template(), labels=("a", "b"))
    base = encoders.tiny_bert(tmp_path / "bert", encoders.texts_of(long))
    notes = cut_notes("llm-r", long, tmp_path / "out", base, max_tokens=500, report=4)
    assert notes[0].startswith(
        "note: of 12 pairs of a query and a random demonstration 12 are longer than the 64 tokens"
    )
    assert "of 15 queries 15 are longer than 64 tokens (all that the base takes; the longest: 92)" in notes[1]
    assert notes[1].endswith("a base that takes more reads more")
