from __future__ import annotations

import numpy as np
import pytest

from iclkit.embed import Embedder
from iclkit.lm import LM, GenerateRequest, ScoreRequest
from iclkit.records import Message
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM, TableEmbedder


def test_the_fakes_are_what_they_stand_for():
    assert isinstance(FakeLM(), LM)
    assert isinstance(HashEmbedder(), Embedder)
    assert isinstance(TableEmbedder({"a": [1, 2]}), Embedder)


def test_fake_scores_are_determined_by_the_text_and_add_up_over_tokens():
    lm = FakeLM()
    one, two, both = lm.score([ScoreRequest("a", " b"), ScoreRequest("a b", " c"), ScoreRequest("a", " b c")])
    assert both.tokens == 2
    assert both.logprob == pytest.approx(one.logprob + two.logprob)
    assert FakeLM().score([ScoreRequest("a", " b")]) == [one]
    assert one.logprob < 0
    assert [r.continuation for r in lm.scored] == [" b", " c", " b c"]


def test_fake_generation_obeys_length_stops_and_choices():
    lm = ScriptedLM(reply=lambda context: " one two\n\nthree")
    stopped, cut, chosen = lm.generate(
        [
            GenerateRequest("q", stop=("\n\n", "zzz")),
            GenerateRequest("q", max_tokens=1),
            GenerateRequest("q", choices=("yes", "no")),
        ]
    )
    assert (stopped.text, stopped.finish) == (" one two", "stop")
    assert (cut.text, cut.tokens, cut.finish) == (" one", 1, "length")
    assert chosen.text in {"yes", "no"}
    assert chosen.finish == "choice"
    assert FakeLM().generate([GenerateRequest("a b c")]) == FakeLM().generate([GenerateRequest("a b c")])


def test_a_script_decides_scores_and_replies_and_says_when_it_has_none():
    lm = ScriptedLM(lambda context, continuation: -1.0 if continuation == " yes" else -9.0, {"Q: 1": " yes"})
    assert [s.logprob for s in lm.score([ScoreRequest("x", " yes"), ScoreRequest("x", " no")])] == [-1.0, -9.0]
    assert lm.generate([GenerateRequest("go. Q: 1")])[0].text == " yes"
    with pytest.raises(KeyError, match="no reply"):
        lm.generate([GenerateRequest("Q: 2")])


def test_results_are_reported_as_they_are_done():
    seen = []
    scores = FakeLM().score([ScoreRequest("a", " b"), ScoreRequest("c", " d")], on_done=seen.extend)
    assert seen == [*enumerate(scores)]


def test_a_chat_shows_every_turn_and_opens_the_next():
    assert FakeLM().render_chat([Message("user", "hi")]) == "<|user|>\nhi<|end|>\n<|assistant|>\n"


def test_texts_that_share_words_are_near_and_batches_do_not_matter():
    embedder = HashEmbedder()
    vectors = embedder.encode_documents(["red fish", "a red fish", "blue dog", ""])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.6 > 0.4 > vectors[0] @ vectors[2]
    assert (embedder.encode_queries(["a red fish"])[0] == vectors[1]).all()
    assert embedder.calls == {"queries": 1, "documents": 4}
    tokens = embedder.encode_tokens(["red fish", ""])
    assert [(words, vectors.shape) for words, vectors in tokens] == [(["red", "fish"], (2, 64)), ([""], (1, 64))]


def test_a_table_gives_unit_vectors_and_knows_its_content():
    table = TableEmbedder({"a": [3, 4], "b": [0, 2]})
    np.testing.assert_allclose(table.encode_queries(["b", "a"]), [[0, 1], [0.6, 0.8]], atol=1e-6)
    assert table.fingerprint != TableEmbedder({"a": [3, 4], "b": [2, 0]}).fingerprint
    with pytest.raises(KeyError):
        table.encode_documents(["c"])
