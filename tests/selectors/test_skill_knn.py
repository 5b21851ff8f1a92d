from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.lm import GenerateRequest, Generation
from iclkit.pool import Pool
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.selectors import Kit, SelectorCost, annotation_file, make_selector
from iclkit.selectors._rewriter import LMRewriter, RewriteStyle
from iclkit.selectors._skill_knn import VARIANTS, key_scores
from iclkit.testing import FakeLM, HashEmbedder, OracleRewriter, hidden_skill_task

STYLES = ("parsing", "classification", "query", "english")
TEXTS = ["red fish", "blue fish", "old dog", "new dog barks", "red dog", "cat and fish", "a cat", "blue sky"]


class Says(FakeLM):
    """Writes what a function makes of the last input and of how often it was asked about it."""

    def __init__(self, write: Any, **options: Any) -> None:
        super().__init__(context_size=100_000, **options)
        self.write, self.seen = write, dict[str, int]()

    def generate(self, requests: Sequence[GenerateRequest], on_done: Any = None) -> list[Generation]:
        self.generated += requests
        out = []
        for r in requests:
            text = r.context.rsplit("Input: ", 1)[1].split("\n")[0]
            number = self.seen[text] = self.seen.get(text, -1) + 1
            out.append(Generation(self.write(text, number), 3, "stop"))
        return out


def fitted(lm: FakeLM, spec: str = "skill-knn", texts: Sequence[str] = TEXTS, pool: Pool | None = None) -> Any:
    pool = pool or Pool.of(Example(t, f"label {n}") for n, t in enumerate(texts))
    return make_selector(spec).fit(pool.view(), Kit(embedder=HashEmbedder(32), lm=lm))


def picks(selector: Any, text: str, k: int = 5) -> list[tuple[str, float]]:
    return [(p.example_id, p.score) for p in selector.select(Query(text), k)]


# ---- the three variants


def naive_scores(query: np.ndarray, pool: np.ndarray, variant: str) -> list[list[float]]:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / max(np.sqrt(a @ a) * np.sqrt(b @ b), 1e-12))

    def one(t: np.ndarray, i: np.ndarray) -> float:
        if variant == "base":
            return cosine(t[0], i[0])
        if variant == "consistency":
            return cosine(sum(t), sum(i))
        return max(cosine(a, b) for a in t for b in i)

    return [[one(t, i) for i in pool] for t in query]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from(VARIANTS))
def test_scores_are_those_of_the_definition(q: int, n: int, m: int, seed: int, variant: str) -> None:
    rng = np.random.default_rng(seed)
    query, pool = (rng.standard_normal((size, m, 5)) for size in (q, n))
    query, pool = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, pool))
    scores = key_scores(query, pool, variant)
    np.testing.assert_allclose(scores, naive_scores(query, pool, variant), atol=1e-9)
    turned = key_scores(query[:, rng.permutation(m)], pool[:, rng.permutation(m)], variant)
    if variant != "base":
        np.testing.assert_allclose(scores, turned, atol=1e-9)
    if m == 1:
        np.testing.assert_allclose(scores, key_scores(query, pool, "base"), atol=1e-9)
    diagonal = np.einsum("qmd,nmd->qnm", query, pool).max(-1)
    assert (key_scores(query, pool, "distinctiveness") >= diagonal - 1e-12).all()
    same = np.repeat(query[:, :1], m, 1), np.repeat(pool[:, :1], m, 1)
    np.testing.assert_allclose(key_scores(*same, variant), key_scores(*same, "base"), atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_one_rewrite_or_equal_rewrites_the_variants_agree(variant: str) -> None:
    def shout(text: str, _number: int) -> str:
        return f"it is {text.split()[-1]}"

    base = picks(fitted(Says(shout), "skill-knn,variant=base"), "wet fish")
    assert picks(fitted(Says(shout), f"skill-knn,variant={variant},rewrites=1"), "wet fish") == base
    more = picks(fitted(Says(shout), f"skill-knn,variant={variant},rewrites=3"), "wet fish")
    assert [i for i, _ in more] == [i for i, _ in base]
    np.testing.assert_allclose([s for _, s in more], [s for _, s in base], atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rewriter_that_repeats_the_input_gives_knn(variant: str) -> None:
    lm = Says(lambda text, _: f" {text}")
    knn = make_selector("knn").fit(fitted(lm).pool_, Kit(embedder=HashEmbedder(32)))
    queries = [Query(t) for t in ("red cat", "old blue dog", "nothing")]
    ours = fitted(lm, f"skill-knn,variant={variant},rewrites=2").select_many(queries, 4)
    theirs = knn.select_many(queries, 4)
    assert [s.ids for s in ours] == [s.ids for s in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([p.score for p in one], [p.score for p in other], atol=2e-6)
    assert [s.ids for s in make_selector("field-knn").fit(knn.pool_, knn.kit_).select_many(queries, 4)] == [
        s.ids for s in theirs
    ]


def test_equal_keys_are_told_apart_by_the_inputs_and_the_user_is_told() -> None:
    selector = fitted(Says(lambda *_: "the same of everything"), "skill-knn,rewrites=2")
    knn = make_selector("knn").fit(selector.pool_, Kit(embedder=HashEmbedder(32)))
    selection = selector.select(Query("red fish and cat"), 8)
    assert selection.ids == knn.select(Query("red fish and cat"), 8).ids
    assert any("only 6% of the pool's keys differ" in note for note in selection.notes)


# ---- what the rewriter sees, and how often


def test_the_rewriter_is_asked_once_per_key_and_never_again(tmp_path: Path) -> None:
    lm = FakeLM()
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add(Example(t, "x") for t in TEXTS)
        selector = fitted(lm, "skill-knn,rewrites=3", pool=pool)
        assert (len(lm.generated), selector.cost(4)) == (0, SelectorCost(3 * len(TEXTS), 3))
        selector.select(Query("new"), 2)
        assert len(lm.generated) == 3 * len(TEXTS) + selector.cost(4).per_query
        selector.select(Query("new"), 3)
        assert len(lm.generated) == 3 * len(TEXTS) + 3
    with Pool.open(tmp_path / "p.db") as pool:
        again = FakeLM()
        fitted(again, "skill-knn,rewrites=3", pool=pool).select(Query("new"), 2)
        assert len(fitted(again, "skill-knn,variant=base", pool=pool).keys_.texts) == len(TEXTS)
        assert again.generated == []
        pool.add([Example("one more", "x")])
        fitted(again, "skill-knn,rewrites=3", pool=pool).select(Query("new"), 2)
        assert len(again.generated) == 3
        other = FakeLM(name="other")
        fitted(other, "skill-knn,rewrites=1", pool=pool).select(Query("new"), 2)
        fitted(again, "skill-knn,rewrites=1,style=query", pool=pool).select(Query("new"), 2)
        assert (len(other.generated), len(again.generated)) == (10, 13)


def test_outputs_are_never_shown_to_the_rewriter_and_keys_never_in_the_prompt() -> None:
    lm = Says(lambda text, n: f"SKILL {n} {text}")
    selector = fitted(lm, "skill-knn,rewrites=2")
    assert not any("label" in r.context.replace("into the right", "") for r in lm.generated)
    selection = selector.select(Query("red fish"), 3)
    shown = [selector.pool_.examples_of([i])[0] for i in selection.ids]
    prompt = assemble(Template(), Query("red fish"), shown)
    assert "SKILL" not in prompt.text
    assert all(e.text in prompt.text and e.output in prompt.text for e in shown)


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_shows_every_pair_once_in_its_order_and_ends_with_the_stem(style: str) -> None:
    shipped = RewriteStyle.load(style)
    rewriter = LMRewriter(Says(None), shipped)
    orders = set()
    for number in range(5):
        prompt = rewriter.prompt("my input\nwith lines", number)
        assert prompt.startswith(shipped.instruction + "\n\n")
        assert prompt.endswith(f"\n\nInput: my input with lines\n{shipped.stem}")
        places = [prompt.index(f"{shipped.stem} {key}\n\n") for _, key in shipped.pairs]
        orders.add(tuple(np.argsort(places)))
        if not number:
            assert places == sorted(places)
    assert len(orders) == 5
    assert prompt.count(shipped.stem) == len(shipped.pairs) + 1 + shipped.instruction.count(shipped.stem)


def test_fields_are_shown_by_name_whatever_the_order_they_are_given_in() -> None:
    fields = {"schema": "a(b, c)", "question": "how many?"}
    rewriter = LMRewriter(Says(None), RewriteStyle.load("parsing"))
    prompt = rewriter.prompt(fields, 0)
    assert "\n\nquestion: how many?\nschema: a(b, c)\nTo answer it, one needs to" in prompt
    assert rewriter.prompt(dict(reversed(fields.items())), 0) == prompt


def test_pairs_give_way_to_a_small_context_and_an_input_that_does_not_fit_stands_for_itself() -> None:
    style = RewriteStyle.load("query")
    small = LMRewriter(FakeLM(context_size=200), style)
    prompt = small.prompt("a short text", 0)
    assert 0 < prompt.count(style.stem) < len(style.pairs) + 1
    assert style.pairs[-1][0][:20] in prompt
    assert small.prompt("word " * 300, 0) == ""
    assert small.write(["word " * 300, "a short text"], 0)[0] == ""
    selector = fitted(FakeLM(context_size=200), "skill-knn,style=query,rewrites=1")
    selection = selector.select(Query("word " * 300), 2)
    assert "1 keys of the query could not be written; its own text stands in" in selection.notes


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        (" count the rows.", "count the rows."),
        ("Search query: count the rows", "count the rows"),
        ("count\nInput: next", "count"),
        ("  \n ", ""),
    ],
)
def test_answers_are_cut_to_one_line_without_the_stem(answer: str, key: str) -> None:
    assert LMRewriter(Says(None), RewriteStyle.load("query")).clean(answer) == key


def test_what_determines_keys_is_in_the_fingerprint() -> None:
    style = RewriteStyle.load("parsing")
    base = LMRewriter(FakeLM(), style)
    others = [
        LMRewriter(FakeLM(name="other"), style),
        LMRewriter(FakeLM(), RewriteStyle.load("query")),
        LMRewriter(FakeLM(), RewriteStyle(style.name, style.instruction, style.stem, style.pairs[::-1])),
        LMRewriter(FakeLM(), style, max_tokens=20),
    ]
    assert len({r.fingerprint for r in [base, *others]}) == 5
    assert LMRewriter(FakeLM(), style, count=2).fingerprint == base.fingerprint


def test_an_own_style_is_read_from_a_file_and_its_faults_are_named(tmp_path: Path) -> None:
    good = tmp_path / "mine.toml"
    good.write_text('instruction = "Say it."\nstem = "It:"\npairs = [["a", "b"]]\n')
    assert RewriteStyle.load(str(good)) == RewriteStyle("mine", "Say it.", "It:", (("a", "b"),))
    with pytest.raises(UnknownName, match="Did you mean 'parsing'"):
        RewriteStyle.load("parsin")
    for text, fault in (
        ("instruction = ", "is not TOML"),
        ('stem = "x"\npairs = [["a", "b"]]', "instruction"),
        ('instruction = "i"\nstem = "x"\npairs = []', "no list of pairs"),
        ('instruction = "i"\nstem = "x"\npairs = [["a"]]', "no input with what is written for it"),
        ('instruction = "i"\nstem = 3\npairs = [["a", "b"]]', "are texts"),
    ):
        good.write_text(text)
        with pytest.raises(DataError, match=fault) as caught:
            RewriteStyle.load(str(good))
        assert "mine.toml" in str(caught.value)


def test_the_shipped_styles_have_enough_pairs_of_one_line_and_say_no_input_again() -> None:
    for name, at_least in zip(STYLES, (16, 16, 8, 8), strict=True):
        style = RewriteStyle.load(name)
        assert len(style.pairs) >= at_least
        assert len({a for a, _ in style.pairs}) == len({b for _, b in style.pairs}) == len(style.pairs)
        assert not any("\n" in t for pair in style.pairs for t in pair)


@pytest.mark.parametrize("spec", ["skill-knn,variant=best", "skill-knn,rewrites=0"])
def test_settings_without_a_meaning_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="selector 'skill-knn': "):
        make_selector(spec)


def test_a_field_can_be_searched_by() -> None:
    pool = Pool.of(Example({"context": f"long context {n} " * 9, "question": t}, "x") for n, t in enumerate(TEXTS))
    selector = make_selector("field-knn,field=question").fit(pool.view(), Kit(embedder=HashEmbedder(32)))
    (pick,) = selector.select(Query({"context": "another", "question": "old dog"}), 1)
    assert pool.get(pick.example_id).input["question"] == "old dog"  # type: ignore[index]
    with pytest.raises(DataError, match="no field 'answer'"):
        make_selector("field-knn,field=answer").fit(pool.view(), Kit(embedder=HashEmbedder(32)))
    with pytest.raises(DataError, match="no field 'question'"):
        selector.select(Query({"context": "another"}), 1)


# ---- named fields, another LM for the keys, keys from a file

SQL = [
    {"question": t, "schema": "lakes(name, size)\nrivers(name)", "db": "geo"}
    for t in ("how many lakes", "longest river")
]
STYLE = """
instruction = "Say it."
stem = "One needs to"
[[pairs]]
input = {schema = "cities(name)", question = "which city"}
rewriting = "select a name."
[[pairs]]
input = {question = "count the cities", schema = "cities(name)"}
rewriting = "count."
"""


def test_a_pair_with_fields_is_shown_as_the_input_is(tmp_path: Path) -> None:
    file = tmp_path / "sql.toml"
    file.write_text(STYLE)
    prompt = LMRewriter(FakeLM(context_size=10_000), RewriteStyle.load(str(file))).prompt(SQL[0], 0)
    assert prompt == (
        "Say it.\n\nschema: cities(name)\nquestion: which city\nOne needs to select a name.\n\n"
        "schema: cities(name)\nquestion: count the cities\nOne needs to count.\n\n"
        "schema: lakes(name, size) rivers(name)\nquestion: how many lakes\nOne needs to"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"question": "how many"}, "no field 'schema'; it has question"),
        ("how many", "no field 'schema'; it is one text"),
    ],
)
def test_an_input_without_a_field_of_the_pairs_is_one_line_when_the_pool_is_looked_at(
    given: Any, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "sql.toml"
    file.write_text(STYLE)
    lm = FakeLM(context_size=10_000)
    view = Pool.of([Example(SQL[0], "1"), Example(given, "2")]).view()
    with pytest.raises(DataError, match=said):
        make_selector(f"skill-knn,style={file}").fit(view, Kit(embedder=HashEmbedder(32), lm=lm))
    selector = make_selector(f"skill-knn,style={file}").fit(
        Pool.of([Example(SQL[0], "1")]).view(), Kit(HashEmbedder(32), lm)
    )
    with pytest.raises(DataError, match=said):
        selector.select(Query(given), 1)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ('[[pairs]]\ninput = {a = "x"}\nrewriting = ""', "pair 1 has no rewriting yet"),
        ('[[pairs]]\ninput = {a = "x"}\nrewriting = "r"\n[[pairs]]\ninput = {b = "x"}\nrewriting = "r"',
         "the input of pair 2 is the fields b, and that of pair 1 the fields a"),
        ('pairs = [["x", "r"], 3]', "pair 2 is 3"),
        ('[[pairs]]\nrewriting = "r"', "pair 1 is .*, no input"),
        ("", "there is no 'pairs'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pair_is_said_with_its_number(pairs: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'instruction = "i"\nstem = "s"\n{pairs}\n')
    with pytest.raises(DataError, match=said) as caught:
        RewriteStyle.load(str(file))
    assert str(caught.value).startswith(str(file))


def test_another_lm_writes_the_keys_and_the_task_lm_is_not_needed() -> None:
    strong, weak = Says(lambda text, number: text.split()[-1]), FakeLM()
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        return strong

    view = Pool.of(Example(t, f"label {n}") for n, t in enumerate(TEXTS)).view()
    selector = make_selector("skill-knn,rewriter=openai:big,rewrites=2")
    assert not selector.needs.lm
    assert make_selector("skill-knn").needs.lm
    with_weak = selector.fit(view, Kit(HashEmbedder(32), weak, load_lm=load)).select(Query("a fish"), 3)
    assert asked == ["openai:big"]
    assert len(strong.generated) == 2 * (len(TEXTS) + 1)
    assert not weak.generated
    alone = make_selector("skill-knn,rewriter=openai:big,rewrites=2").fit(view, Kit(HashEmbedder(32), load_lm=load))
    assert alone.select(Query("a fish"), 3).ids == with_weak.ids
    assert len(strong.generated) == 2 * (len(TEXTS) + 1), "the pool has them already"


def test_settings_at_their_defaults_leave_the_spec_of_runs_before_as_it_was() -> None:
    assert make_selector("skill-knn").spec.settings == {
        "style": "classification", "variant": "distinctiveness", "rewrites": 5,
    }  # fmt: skip
    assert make_selector("skill-knn,rewriter=x,variant=base,order=2").spec.settings["order"] == 2


def test_base_compares_the_key_of_one_order_and_seeds_are_orders() -> None:
    words = ["red", "old", "cat"]

    def keys_by(spec: str, seed: int = 0) -> tuple[tuple[str, ...], ...]:
        lm = Says(lambda text, number: f"{text} {number}")
        view = Pool.of(Example(t, t) for t in words).view()
        return tuple(make_selector(spec).fit(view, Kit(HashEmbedder(8), lm, seed=seed)).keys_.texts)

    view = Pool.of(Example(t, t) for t in words).view()
    lm = FakeLM(context_size=100_000)
    third = make_selector("skill-knn,variant=base,order=2").fit(view, Kit(HashEmbedder(8), lm))
    assert len(third.keys_.texts[0]) == 1
    rewriter = LMRewriter(lm, RewriteStyle.load("classification"))
    assert [r.context for r in lm.generated] == [rewriter.prompt(t, 2) for t in words]
    seeded = make_selector("skill-knn,variant=base,order=-1")
    assert seeded.needs.seed_scope == "task"
    lm.generated.clear()
    assert seeded.fit(view, Kit(HashEmbedder(8), lm, seed=2)).keys_ == third.keys_
    assert not lm.generated, "the key of order 2 is known"
    assert keys_by("skill-knn,variant=base") == (("red 0",), ("old 0",), ("cat 0",))
    with pytest.raises(UsageError, match="which is for variant=base"):
        make_selector("skill-knn,order=1")


def test_keys_of_a_file_take_the_place_of_written_ones_and_make_another_spec(tmp_path: Path) -> None:
    pool, file = Pool.of(Example(t, f"label {n}") for n, t in enumerate(TEXTS)), tmp_path / "keys.jsonl"
    view = pool.view()
    rows = [{"id": i, "number": n, "key": f"{t} by hand"} for i, t in zip(view.ids, TEXTS, strict=True) for n in (0, 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    lm = Says(lambda text, number: f"{text} written")
    selector = make_selector(f"skill-knn,rewrites=2,keys={file}").fit(view, Kit(HashEmbedder(32), lm))
    assert selector.keys_.texts[0] == ("red fish by hand", "red fish by hand")
    assert selector.keys_.texts[-1] == ("blue sky by hand", "blue sky written")
    assert len(lm.generated) == 1
    content = selector.spec.content
    file.write_text(json.dumps({**rows[0], "key": "edited"}) + "\n")
    assert make_selector(f"skill-knn,rewrites=2,keys={file}").spec.content not in ("", content)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"id": "gone", "key": "x"},
            r"keys.jsonl:1: example gone is not in the pool \(lines like this: 1\); take them out",
        ),
        ({"id": "{id}", "key": " "}, r"keys.jsonl:1: `key` is empty"),
        ({"key": "x"}, r"keys.jsonl:1: give \{"),
        ({"id": "{id}", "number": -1, "key": "x"}, r"keys.jsonl:1: give \{"),
        ([1], r"keys.jsonl:1: give \{"),
    ],
)
def test_a_line_of_a_file_of_keys_that_cannot_be_used_is_named(line: Any, said: str, tmp_path: Path) -> None:
    view, file = Pool.of([Example("a", "b")]).view(), tmp_path / "keys.jsonl"
    file.write_text(json.dumps(line).replace("{id}", view.ids[0]))
    with pytest.raises(DataError, match=said):
        make_selector(f"skill-knn,keys={file}").fit(view, Kit(HashEmbedder(8), FakeLM()))


def test_a_file_to_annotate_holds_diverse_inputs_and_is_a_style_once_it_is_filled_in(tmp_path: Path) -> None:
    odd = 'say "hi"\\ \x7f now\nthen'
    pool = Pool.of([Example({"question": t, "schema": "s"}, "x") for t in (*TEXTS, odd)])
    text = annotation_file(pool.view(), HashEmbedder(32), "parsing", count=9)
    asked = [p["input"]["question"] for p in tomllib.loads(text)["pairs"]]
    assert sorted(asked) == sorted([*TEXTS, odd])
    few = tomllib.loads(annotation_file(pool.view(), HashEmbedder(32), "parsing", count=3))["pairs"]
    assert len(few) == 3
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(DataError, match="pair 1 has no rewriting yet"):
        RewriteStyle.load(str(file))
    file.write_text(text.replace('rewriting = ""', 'rewriting = "a skill"'))
    assert RewriteStyle.load(str(file)).fields == ("question", "schema")
    with pytest.raises(DataError, match="different fields"):
        annotation_file(Pool.of([Example("a", "x"), Example({"q": "b"}, "x")]).view(), HashEmbedder(32), "parsing")


# ---- where surface similarity misleads


def share_right(task: Any, spec: str, k: int = 4) -> float:
    """Share of the picks that have the query's label."""
    with Pool.of(task.train) as pool:
        kit = Kit(embedder=HashEmbedder(256), lm=OracleRewriter(), labels=task.labels, seed=1)
        selections = make_selector(spec).fit(pool.view(), kit).select_many(task.queries(), k)
        right = [pool.get(i).output == row.output for s, row in zip(selections, task.test, strict=True) for i in s.ids]
    return sum(right) / len(right)


def test_where_the_skill_decides_skill_knn_beats_knn_by_a_wide_margin() -> None:
    task = hidden_skill_task()
    for variant in VARIANTS:
        assert share_right(task, f"skill-knn,variant={variant},rewrites=2") == 1.0
    assert share_right(task, "knn") < 0.6
    assert share_right(task, "random") < 0.3


def test_where_the_surface_decides_knn_beats_random_by_a_wide_margin() -> None:
    control = hidden_skill_task(surface=True)
    assert share_right(control, "knn") > 0.95
    assert share_right(control, "random") < 0.3
    assert share_right(control, "skill-knn,rewrites=1") > 0.7  # all keys of a skill are equal: the inputs decide
