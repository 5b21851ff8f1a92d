"""From a task to a selector file: what is asked, what is kept apart, what is written down."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.errors import DataError, ModelError, RequestError, RunError, UsageError
from iclkit.lm import Score
from iclkit.prompts import Template, assemble
from iclkit.records import Example
from iclkit.selectors import make_selector
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM
from iclkit.tuners import (
    Arm,
    TuneSettings,
    curves,
    make_problem,
    make_space,
    price_search,
    read_instructions,
    search_plot,
    tune,
    write_instructions,
)

TEMPLATE = Template("Text: {input}\nKind: {output}")
LABELS = ("yes", "no")


def rows(split, count):
    return [Example(f"{split} text number {n} of many {split}{n}", LABELS[n % 2]) for n in range(count)]


def task(**more):
    splits = {"train": rows("train", 40), "test": rows("test", 20), "dev": rows("dev", 60)} | more
    return make_task("things", splits["train"], splits["test"], splits["dev"], template=TEMPLATE, kind="classification")


class Rater(ScriptedLM):
    """Gets a share of the queries right that grows with the numbers of the demonstrations, the last counting most."""

    def __init__(self):
        super().__init__(self.rate)

    def rate(self, context, continuation):
        *demos, query = context.split("\n\n")
        numbers = [int(d.split()[4]) for d in demos if d.startswith("Text:")]
        worth = sum(n * (i + 1) for i, n in enumerate(numbers)) / (39 * sum(range(1, len(numbers) + 1)))
        number = int(query.split()[4])
        right = continuation.strip() == LABELS[number % 2]
        knows = (number * 7919 % 100) / 100 < worth
        bonus = 5.0 if demos[0] == "Do it well." else 0.0
        return -1.0 if right == (knows or bool(bonus)) else -2.0


SETTINGS = TuneSettings(k=3, trials=16, sampler="ease,warmup=6", validation=20, confirm=20, candidates=30)


def problem(lm=None, settings=SETTINGS, source=None, **more):
    return make_problem(source or task(), lm or Rater(), settings, report=lambda _: None, **more)


def test_questions_candidates_and_test_rows_are_apart_and_drawn_by_seed():
    one = problem()
    asked = {e.id for _, e in (*one.validation, *one.confirmation)}
    assert len(asked) == 40
    assert asked <= {e.id for e in one.task.dev}
    assert len(one.view) == 30
    assert {*one.view.ids} <= {e.id for e in one.task.train}
    assert problem().facts() == one.facts()
    assert problem(settings=replace(SETTINGS, seed=1)).facts() != one.facts()
    small = problem(source=replace(task(), dev=()), settings=replace(SETTINGS, validation=6, confirm=6))
    asked = {e.id for _, e in (*small.validation, *small.confirmation)}
    assert asked <= {e.id for e in small.task.train}
    assert not asked & {*small.view.ids}


def test_what_resembles_a_test_row_is_not_asked_and_what_resembles_a_question_is_not_shown():
    test = rows("test", 20)
    dev = [*[Example(e.input.upper(), e.output) for e in test[:10]], *rows("dev", 30)]
    twins = [Example(e.input + "!", e.output) for e in rows("dev", 30)]
    one = problem(source=task(test=test, dev=dev, train=[*rows("train", 20), *twins]),
                  settings=replace(SETTINGS, validation=15, confirm=15))  # fmt: skip
    asked = {e.text.lower() for _, e in (*one.validation, *one.confirmation)}
    assert not asked & {e.text.lower() for e in test}
    assert not {f"{t}!" for t in asked} & {e.text for e in one.view.examples}


def test_too_few_rows_are_one_line_that_says_what_is_there():
    with pytest.raises(DataError, match=r"40 rows to ask about .* 200 \+ 20 questions"):
        problem(source=replace(task(), dev=()), settings=replace(SETTINGS, validation=200))


@pytest.mark.parametrize("draw", ["validation", "vote-k"])
def test_candidates_of_a_large_pool_can_be_the_nearest_of_the_questions_or_represent_the_rest(draw):
    near = [Example(f"dev text number {n} of many dev{n} told again at length", LABELS[n % 2]) for n in range(60)]
    source = task(train=[*rows("train", 150), *near])
    way = replace(SETTINGS, draw=draw, candidates=24)
    eyes = HashEmbedder(64)
    one = problem(settings=way, source=source, embedder=eyes)
    assert len(one.view) == 24
    assert problem(settings=way, source=source, embedder=eyes).facts() == one.facts()
    if draw == "validation":
        chance = problem(settings=replace(way, draw="random"), source=source)
        told = [sum("told again" in e.text for e in p.view.examples) for p in (one, chance)]
        assert told[0] > told[1] + 5
    else:
        assert {*one.view.ids} == {*problem(settings=replace(way, seed=0, k=2), source=source, embedder=eyes).view.ids}
    assert {e.text for e in one.view.examples} == {e.text for e in source.train if e.id in one.view.ids}
    few = problem(settings=replace(way, candidates=500), source=source, embedder=eyes)
    assert few.view.ids == problem(settings=replace(way, candidates=500, draw="random"), source=source).view.ids
    with pytest.raises(UsageError, match=f"drawn by {draw} need an embedder"):
        problem(settings=way, source=source)


def test_a_price_counts_prompts_proposals_and_texts_to_embed():
    price = price_search(task(), replace(SETTINGS, trials=16, top=2))
    assert (price.lists, price.prompts, price.proposals) == (16, 16 * 20 + 2 * 20, 10)
    assert price.encoded == 30 + 20
    assert price.tokens > 2 * price.read > 0
    block = price_search(task(), replace(SETTINGS, features="block", sampler="ease,warmup=6,keep=40"))
    assert block.encoded == 50 + 16 + 10 * 40
    drawn = price_search(task(), replace(SETTINGS, sampler="best-of-n", draw="vote-k"))
    assert (drawn.proposals, drawn.encoded) == (0, 40)
    with pytest.raises(DataError, match="rows to ask about"):
        price_search(replace(task(), dev=()), replace(SETTINGS, validation=200))


def test_studies_keep_the_names_that_they_began_with_so_that_those_of_before_go_on(tmp_path):
    way = replace(SETTINGS, sampler="ease,warmup=4,neighbors=0.25", trials=1, confirm=0)
    tune(problem(settings=way), way, embedder=HashEmbedder(), storage=f"journal:{tmp_path}/s.journal")
    kept = (tmp_path / "s.journal").read_text()
    assert '"ease,warmup=4,neighbours=0.25"' in kept
    assert '"neighbours":0.25' in kept
    assert "neighbors" not in kept


def test_a_search_finds_a_good_list_confirms_it_and_writes_what_it_did(tmp_path):
    one = problem()
    found = tune(one, SETTINGS, embedder=HashEmbedder(), storage=f"sqlite:///{tmp_path}/s.db")
    assert len(found.trials) == 16
    assert found.validation.value == max(found.curve)
    assert found.curve == [np.mean(t.user_attrs["values"]) for t in found.trials]
    best = [t for t in found.trials if t.value >= sorted(found.curve)[-3]]
    assert {n for n, _, _ in found.finalists} <= {t.number for t in best}
    arms = {n: Arm(tuple(found.trials[n].params[f"pos_{i}"] for i in range(3))) for n, _, _ in found.finalists}
    confirmed = {n: one.score(arm, one.confirmation)[0].mean() for n, arm in arms.items()}
    assert {n: c for n, _, c in found.finalists} == confirmed
    assert found.confirmation.value == max(confirmed.values())
    assert found.error == pytest.approx(np.std(best[0].user_attrs["values"], ddof=1) / 20**0.5, rel=0.5)
    assert found.luck > found.error
    found.file.write(tmp_path / "best.json")
    data = json.loads((tmp_path / "best.json").read_text())
    assert [d["id"] for d in data["demonstrations"]] == [one.view.ids[r] for r in found.arm.rows]
    assert data["search"]["sampler"] == "ease,warmup=6"
    assert data["search"]["values"] == found.curve
    assert data["lm"]["fingerprint"] == one.lm.fingerprint
    assert data["confirmation"]["low"] < data["confirmation"]["value"] < data["confirmation"]["high"]
    assert "by luck alone" in data["validation"]["note"]
    run = evaluate(one.task, str(tmp_path / "best.json"), one.lm, k=3)
    assert {row.shown for row in run.rows} == {tuple(one.view.ids[r] for r in found.arm.rows)}


@pytest.mark.parametrize("sampler", ["ease,warmup=4", "random", "tpe", "best-of-n", "evolution"])
def test_a_search_that_stops_and_goes_on_is_the_search_that_did_not_stop(sampler, tmp_path):
    way = replace(SETTINGS, sampler=sampler, trials=10)
    whole = tune(problem(), way, embedder=HashEmbedder(), storage=f"journal:{tmp_path}/a")
    for trials in (3, 7, 10):
        lm = Rater()
        parts = tune(problem(lm), replace(way, trials=trials), embedder=HashEmbedder(), storage=f"journal:{tmp_path}/b")
    assert parts.curve == whole.curve
    assert parts.arm == whole.arm
    assert parts.file.demonstrations == whole.file.demonstrations
    asked = len(lm.scored)
    tune(problem(lm), way, embedder=HashEmbedder(), storage=f"journal:{tmp_path}/b")
    assert len(lm.scored) - asked == 3 * 20 * 2  # nothing but the confirmation, for the LM's cache to answer


def test_every_prompt_of_a_trial_begins_with_the_same_demonstrations():
    lm = Rater()
    one = problem(lm)
    one.score(Arm((4, 1, 2)), one.validation)
    shared = "\n\n".join(TEMPLATE.render_demo(one.view.examples[r]) for r in (4, 1, 2)) + "\n\n"
    assert len(lm.scored) == 20 * 2
    assert all(r.context.startswith(shared) for r in lm.scored)
    queries = {r.context.removeprefix(shared) for r in lm.scored}
    assert queries == {assemble(TEMPLATE, q, []).text for q, _ in one.validation}


def test_lists_that_are_behind_are_given_up_after_half_of_the_queries_and_never_chosen():
    lm = Rater()
    way = replace(SETTINGS, pruner="median", trials=20, sampler="best-of-n")
    found = tune(problem(lm), way)
    pruned = [t for t in found.trials if t.state.name == "PRUNED"]
    assert pruned
    assert {len(t.user_attrs["values"]) for t in pruned} <= {10, 15}
    assert len(found.curve) == 20 - len(pruned)
    assert len(lm.scored) == 2 * (sum(len(t.user_attrs["values"]) for t in found.trials) + 3 * 20)
    full = tune(problem(), replace(way, pruner="none"))
    assert found.validation.value == full.validation.value


def test_the_confirmation_decides_and_without_one_the_validation_does():
    one = problem()
    found = tune(one, replace(SETTINGS, sampler="best-of-n", trials=8))
    assert max(found.finalists, key=lambda f: (f[2], f[1], -f[0]))[2] == found.confirmation.value
    none = replace(SETTINGS, sampler="best-of-n", trials=8, confirm=0)
    bare = tune(problem(settings=none), none)
    assert bare.confirmation is None
    assert bare.validation.value == max(bare.curve)
    assert bare.file.facts["confirmation"] is None


def test_the_better_instruction_is_found_and_shown(tmp_path):
    one = problem(instructions=("Do it.", "Do it well.", "Do nothing."))
    found = tune(one, replace(SETTINGS, trials=12), embedder=HashEmbedder())
    assert found.file.instruction == "Do it well."
    assert found.confirmation.value == 1
    found.file.write(tmp_path / "best.json")
    run = evaluate(one.task, str(tmp_path / "best.json"), one.lm, k=3)
    assert run.spec.parts["template"]["instruction"] == "Do it well."
    assert np.mean([r.metrics["accuracy"] for r in run.rows]) == 1


def generation():
    def pairs(split, n):
        return [Example(f"{split} {i}", f"answer {split}{i}") for i in range(n)]

    return make_task("free", pairs("a", 20), pairs("b", 5), pairs("c", 30), template=TEMPLATE, kind="generation")


class Echo(ScriptedLM):
    """Knows the answers of even numbers; says so in its scores and in what it generates alike."""

    def __init__(self):
        super().__init__(self.rate, self.write)

    @staticmethod
    def _answer_of(context):
        split, number = context.rpartition("Text: ")[2].split("\n")[0].split()
        return f" answer {split}{number}" if int(number) % 2 == 0 else " nothing"

    def rate(self, context, continuation):
        return -0.1 if continuation.rstrip("\n") == self._answer_of(context) else -9.0

    def write(self, context):
        return self._answer_of(context) + "\n\nText: more"


def test_reading_the_right_answers_judges_like_writing_them_and_generates_nothing():
    lm = Echo()
    way = TuneSettings(k=2, trials=3, validation=10, confirm=10, sampler="random")
    one = make_problem(generation(), lm, way, report=lambda _: None)
    arm = Arm((0, 1))
    assert one.objective("auto") == "greedy"
    read, _ = one.score(arm, one.validation, "greedy")
    assert not lm.generated
    assert all(r.continuation.endswith("\n") for r in lm.scored)
    written, _ = one.score(arm, one.validation, "metric")
    assert lm.generated
    assert read.tolist() == written.tolist()
    assert 0 < read.mean() < 1
    logprob, _ = one.score(arm, one.validation, "logprob")
    assert {*logprob.tolist()} == {-0.1, -9.0}
    assert problem().objective("auto") == "metric"
    labels, _ = problem().score(Arm((0, 1, 2)), problem().validation, "logprob")
    assert (labels < 0).all()


def test_what_cannot_be_searched_is_one_line():
    with pytest.raises(UsageError, match="Did you mean 'ease'"):
        tune(problem(), replace(SETTINGS, sampler="eas"))
    with pytest.raises(UsageError, match="needs features"):
        tune(problem(), SETTINGS)
    with pytest.raises(UsageError, match="ignores order or cuts the text off; use --features positions"):
        make_space(problem(), replace(SETTINGS, features="block"), HashEmbedder())
    with pytest.raises(DataError, match="do not fit the context"):
        tune(problem(FakeLM(context_size=30)), replace(SETTINGS, sampler="random"))
    with pytest.raises(UsageError, match="judges whole runs"):
        problem(source=replace(task(), metric="corpus_bleu")).facts()
    for bad in ({"k": 0}, {"features": "x"}, {"objective": "x"}, {"confirm": -1}, {"pruner": "x"}):
        with pytest.raises(UsageError):
            replace(SETTINGS, **bad)


def test_no_more_lists_are_asked_for_than_there_are():
    way = replace(SETTINGS, candidates=3, k=2, trials=50, sampler="evolution")
    found = tune(problem(settings=way), way)
    assert len(found.trials) == 6


def test_searches_of_one_question_are_drawn_together(tmp_path):
    storage = f"journal:{tmp_path}/j"
    for sampler in ("best-of-n", "evolution"):
        for seed in (0, 1):
            way = replace(SETTINGS, sampler=sampler, trials=4, seed=seed)
            tune(problem(settings=way), way, storage=storage)
    found = curves(storage, problem().facts())
    assert {name: len(runs) for name, runs in found.items()} == {"best-of-n": 2, "evolution": 2}
    svg = search_plot(found, title="a < b", value="accuracy")
    assert "a &lt; b" in svg
    assert svg.count("<title>") == 2
    import xml.etree.ElementTree as ET

    assert ET.fromstring(svg).tag.endswith("svg")
    with pytest.raises(ValueError, match="no trial"):
        search_plot({"ease": [[]]})


def test_instructions_come_from_a_file_or_from_the_lm(tmp_path):
    (tmp_path / "lines.txt").write_text("One thing.\n\n\nAnother\nthing.\n\nOne thing.\n")
    assert read_instructions(tmp_path / "lines.txt") == ["One thing.", "Another\nthing."]
    (tmp_path / "lines.txt").write_text("One thing.\nAnother.\n")
    assert read_instructions(tmp_path / "lines.txt") == ["One thing.", "Another."]
    (tmp_path / "lines.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no instruction"):
        read_instructions(tmp_path / "lines.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_instructions(tmp_path / "none.txt")
    lm = ScriptedLM(reply=lambda _: ' "Say the kind."\nInput: more')
    assert write_instructions(lm, TEMPLATE, rows("train", 20), 5) == ["Say the kind."]
    assert len({r.context for r in lm.generated}) == 5
    assert all(r.context.count("Kind:") == 10 for r in lm.generated)
    with pytest.raises(RunError, match="wrote no instruction in 2 tries"):
        write_instructions(ScriptedLM(reply=lambda _: "\n"), TEMPLATE, rows("train", 20), 2)


def test_a_refused_prompt_costs_one_instruction_not_all():
    class Picky(ScriptedLM):
        def generate(self, requests, on_done=None):
            for n, request in enumerate(requests):
                if request.seed in self.refused:
                    raise RequestError(n, "filtered by the server")
            return super().generate(requests, on_done)

    lm = Picky(reply=lambda c: f" Say kind {len(c)}.")
    lm.refused = {1}
    assert 0 < len(write_instructions(lm, TEMPLATE, rows("train", 20), 3)) <= 2
    lm.refused = {0, 1, 2}
    with pytest.raises(RunError, match=r"wrote no instruction in 3 tries \(refused: filtered by the server\)"):
        write_instructions(lm, TEMPLATE, rows("train", 20), 3)


def test_a_selector_file_is_taken_wherever_a_selector_is(tmp_path):
    found = tune(problem(), replace(SETTINGS, sampler="random", trials=2))
    found.file.write(tmp_path / "best.json")
    assert make_selector(f"{tmp_path}/best.json").spec.name == "fixed"
    assert make_selector(f"fixed,file={tmp_path}/best.json").spec == make_selector(f"{tmp_path}/best.json").spec


# -- LMs that tell no log-probabilities, chats, and answers that are none --


class Server(ScriptedLM):
    """Writes as ``Echo`` does, and scores like a server without probabilities: by how its own short answer begins."""

    scoring = "generate"

    def __init__(self, reply, **more):
        super().__init__(reply=reply, **more)

    def score(self, requests, on_done=None):
        scores = []
        for request in requests:
            said = self._reply(request.context)[:12].strip()
            wanted = request.continuation.strip()
            scores.append(Score(-0.1 if said.startswith(wanted) or wanted.startswith(said) else -50.0, 3, True))
        if on_done:
            on_done([*enumerate(scores)])
        return scores


def long_answer(split, number):
    return f"the answer to text number {number} of the split that is called {split} is this one and no other one"


def long_task():
    def pairs(split, n):
        return [Example(f"{split} {i}", long_answer(split, i)) for i in range(n)]

    return make_task("long", pairs("a", 20), pairs("b", 5), pairs("c", 30), template=TEMPLATE, kind="generation")


def asked_about(context):
    split, number = context.rpartition("Text: ")[2].split("\n")[0].split()
    return split, int(number)


LONG = TuneSettings(k=2, trials=3, validation=10, confirm=10, sampler="random")


@pytest.mark.parametrize("scoring", ["generate", "first-token"])
@pytest.mark.parametrize("objective", ["auto", "greedy", "metric"])
def test_a_right_lm_without_log_probabilities_is_right_whatever_the_objective(scoring, objective):
    lm = Server(lambda context: " " + long_answer(*asked_about(context)) + "\n\nText: more")
    lm.scoring = scoring
    way = replace(LONG, objective=objective)
    one = make_problem(long_task(), lm, way, report=lambda _: None)
    found = tune(one, way)
    assert found.validation.value == found.confirmation.value == 1
    assert one.objective("auto") == "metric"


def test_greedy_by_a_server_counts_no_answer_that_only_begins_with_the_right_one():
    goes_on = {0: "", 1: " indeed", 2: ".", 3: "\nand more", 4: "  ", 5: " \nText: more"}
    lm = Server(lambda c: f" {long_answer(*asked_about(c))}{goes_on[asked_about(c)[1] % 6]}")
    one = make_problem(long_task(), lm, LONG, report=lambda _: None)
    values, _ = one.score(Arm((0, 1)), one.validation, "greedy")
    assert {(asked_about("Text: " + q.text)[1] % 6, v) for (q, _), v in zip(one.validation, values, strict=True)} <= {
        (0, 1.0), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0)
    }  # fmt: skip
    assert {*values} == {0.0, 1.0}
    longest = max(lm.count_tokens(" " + e.output) for _, e in one.validation)
    assert {r.max_tokens for r in lm.generated} == {longest + 8}
    assert {r.stop for r in lm.generated} == {("\n",)}


def test_an_answer_of_several_lines_is_not_cut_at_the_first():
    def pairs(split, n):
        return [Example(f"{split} {i}", f"first of {split}{i}\n\nsecond line") for i in range(n)]

    task = make_task("lines", pairs("a", 20), pairs("b", 5), pairs("c", 30), template=TEMPLATE, kind="generation")

    def reply(context):
        split, number = asked_about(context)
        return f" first of {split}{number}\n\nsecond {'line' if number % 2 else 'lines'}\n\nText: more"

    one = make_problem(task, Server(reply), LONG, report=lambda _: None)
    values, _ = one.score(Arm((0, 1)), one.validation, "greedy")
    assert values.tolist() == [float(asked_about("Text: " + q.text)[1] % 2) for q, _ in one.validation]


def test_greedy_in_a_chat_is_written_since_nothing_that_can_be_read_ends_a_turn():
    def reply(context):
        split, number = context.rpartition("Text: ")[2].split("<|end|>")[0].split("\n")[0].split()[:2]
        return f"answer {split}{number}" + (" and so on" if int(number) % 2 else "")

    task = generation()
    lm = ScriptedLM(lambda *_: -0.1, reply)  # every right answer would be read as right
    one = make_problem(replace(task, template=replace(task.template, chat=True)), lm, LONG, report=lambda _: None)
    assert one.objective("auto") == "metric"
    values, _ = one.score(Arm((0, 1)), one.validation, "greedy")
    assert values.tolist() == [1.0 - asked_about("Text: " + q.text)[1] % 2 for q, _ in one.validation]
    assert not lm.scored


@pytest.mark.parametrize("scoring", ["generate", "first-token"])
def test_an_objective_that_a_server_cannot_tell_is_refused_before_it_is_asked(scoring):
    lm = Server(lambda _: " x")
    lm.scoring = scoring
    way = replace(LONG, objective="logprob")
    with pytest.raises(UsageError, match="does not tell the log-probability of a whole answer"):
        tune(make_problem(long_task(), lm, way, report=lambda _: None), way)
    assert not lm.generated
    labels = make_problem(task(), lm, SETTINGS, report=lambda _: None)
    if scoring == "generate":
        with pytest.raises(UsageError, match="log-probability"):
            labels.objective("logprob")
    else:
        assert labels.objective("logprob") == "logprob"


class Refusing(Echo):
    """Refuses questions by their number, one request at a time as servers do."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def _each(self, requests, ask, on_done):
        out = []
        for n, request in enumerate(requests):
            if self.bad(asked_about(request.context)[1]):
                raise RequestError(n, "filtered by the server")
            out += ask([request])
            if on_done:
                on_done([(n, out[-1])])
        return out

    def score(self, requests, on_done=None):
        return self._each(requests, super().score, on_done)

    def generate(self, requests, on_done=None):
        return self._each(requests, super().generate, on_done)


@pytest.mark.parametrize("scoring", ["", "generate"])
def test_a_refused_question_is_no_answer_and_counted(scoring):
    lm = Refusing(lambda number: number % 3 == 0)
    lm.scoring = scoring
    one = make_problem(generation(), lm, LONG, report=lambda _: None)
    values, cost = one.score(Arm((0, 1)), one.validation, "greedy")
    numbers = [asked_about("Text: " + q.text)[1] for q, _ in one.validation]
    assert values.tolist() == [float(n % 3 != 0 and n % 2 == 0) for n in numbers]
    assert cost["no_answer"] == sum(n % 3 == 0 for n in numbers) > 0
    found = tune(one, replace(LONG, objective="greedy"))
    assert found.file.facts["spent"]["no_answer"] > cost["no_answer"]


def test_logprob_and_an_lm_that_refuses_everything_stop_with_one_line():
    one = make_problem(generation(), Refusing(lambda n: n % 3 == 0), LONG, report=lambda _: None)
    with pytest.raises(RunError, match=r"no log-probability \(filtered by the server\).*use --objective metric"):
        one.score(Arm((0, 1)), one.validation, "logprob")
    none = make_problem(generation(), Refusing(lambda _: True), LONG, report=lambda _: None)
    with pytest.raises(RunError, match="refused all of 10 prompts: filtered by the server"):
        none.score(Arm((0, 1)), none.validation, "greedy")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("objective", ["greedy", "logprob"])
def test_a_broken_model_wins_no_search(bad, objective):
    lm = ScriptedLM(lambda *_: bad)
    way = replace(LONG, objective=objective)
    with pytest.raises(ModelError, match=f"gave {bad:g} as the log-probability"):
        tune(make_problem(generation(), lm, way, report=lambda _: None), way)


def test_an_empty_answer_is_wrong_and_counted():
    lm = Server(lambda c: "" if asked_about(c)[1] % 2 else f" {long_answer(*asked_about(c))}\n")
    one = make_problem(long_task(), lm, LONG, report=lambda _: None)
    for objective in ("greedy", "metric"):
        values, cost = one.score(Arm((0, 1)), one.validation, objective)
        odd = [asked_about("Text: " + q.text)[1] % 2 for q, _ in one.validation]
        assert values.tolist() == [1.0 - n for n in odd]
        assert cost["no_answer"] == sum(odd) > 0


def test_instructions_keep_line_separators_that_are_no_line_ends(tmp_path):
    (tmp_path / "i.txt").write_bytes("\ufeffDo\u2028this.\r\nDo\x85that.\r\n".encode())
    assert read_instructions(tmp_path / "i.txt") == ["Do\u2028this.", "Do\x85that."]
    (tmp_path / "i.txt").write_bytes(b"One\r\nthing.\r\n \r\nAnother.\r\n")
    assert read_instructions(tmp_path / "i.txt") == ["One\nthing.", "Another."]
