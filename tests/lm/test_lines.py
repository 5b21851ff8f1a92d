"""Texts tokenized line by line have the ids of the whole text, for every tokenizer that is read so."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from iclkit.lm._lines import LineTokenizer, line_tokenizer, lines_of
from iclkit.lm._tokens import PromptTokenizer

from .conftest import CORPUS, train_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
Pre = pre_tokenizers.PreTokenizer


def by_pattern(pattern: str, behavior: str = "isolated") -> Pre:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), BYTES])


def tokenizer(pre: Pre, normalizer: object = None, added: str = "<|end|>") -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*CORPUS, "a!\n\nb\n\n  c\n\n!\n\n\n12 34\n Review:\nReview:\n\nSentiment: good"] * 3
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    core.add_tokens([AddedToken(added, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


GOOD: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt-2": lambda: tokenizer(GPT2),
    "digits": lambda: tokenizer(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])),
    "llama-3": lambda: tokenizer(by_pattern(LLAMA3)),
    "qwen": lambda: tokenizer(by_pattern(LLAMA3), normalizers.NFC()),
    "o200k": lambda: tokenizer(by_pattern(O200K)),
}
BAD: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "unigram": lambda: train_tokenizer("unigram", False),
    "prefix space": lambda: tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no words": lambda: tokenizer(BYTES),
    "looks behind": lambda: tokenizer(by_pattern(r"(?<=\n)\p{L}+|\S+|\s+")),
    "looks farther": lambda: tokenizer(by_pattern(r"\s+(?=\S\S)|\S+|\s+")),
    "end of text": lambda: tokenizer(by_pattern(r"\s+$|\S+|\s+")),
    "two patterns": lambda: tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+\n\w+"), "isolated"), GPT2])
    ),
    "prepends": lambda: tokenizer(GPT2, normalizers.Prepend("_")),
    "a token of two lines": lambda: tokenizer(GPT2, added="end\nReview"),
}  # fmt: skip
made: dict[str, PreTrainedTokenizerFast] = {}


def made_once(name: str) -> PreTrainedTokenizerFast:
    if name not in made:
        made[name] = (GOOD | BAD)[name]()
    return made[name]


def plain(of: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(of(text, add_special_tokens=False)["input_ids"])


pieces = st.sampled_from(
    ["\n", "\n\n", "\r\n", " ", "  ", "\t", "Review:", "Sentiment: good", "a", "É", "e\u0301", "\u0301", "12", "1234",
     "!", "it's", "'s", "'", "日本", "<|end|>", "<|", "end|>", "...", "/", "ß", "K"]
)  # fmt: skip


def texts(most: int) -> st.SearchStrategy[str]:
    return st.lists(pieces, max_size=most).map("".join)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=100, deadline=None)
@given(
    head=st.lists(pieces, max_size=14).map("".join),
    tails=st.lists(st.lists(pieces, max_size=3).map("".join), max_size=3),
)
def test_lines_give_the_ids_of_the_whole_text(name, head, tails):
    of = made_once(name)
    lines = line_tokenizer(of)
    assert lines is not None
    assert lines.encode([head, head + head]) == [plain(of, head), plain(of, head + head)]
    assert lines.encode_behind({head: tails}) == {(head, tail): plain(of, head + tail) for tail in tails}


@pytest.mark.parametrize("name", BAD)
def test_a_tokenizer_that_does_not_read_by_lines_reads_whole_texts(name):
    assert line_tokenizer(made_once(name)) is None


@pytest.mark.models
def test_smollm2_reads_by_lines(smollm2_path):
    from transformers import AutoTokenizer

    assert line_tokenizer(AutoTokenizer.from_pretrained(smollm2_path)) is not None


def test_a_line_where_no_word_begins_is_read_with_its_text():
    def encode(texts):  # every character is a token, and a newline is of one word with what follows
        return [(tuple(map(ord, t)), [t[: n + 1].replace("\n", "").count(" ") for n in range(len(t))]) for t in texts]

    assert LineTokenizer(encode).encode(["ab\ncd"]) == [tuple(map(ord, "ab\ncd"))]


def test_what_stands_in_many_prompts_is_tokenized_once():
    seen: list[str] = []
    of = made_once("gpt-2")

    class Counting:
        backend_tokenizer = of.backend_tokenizer
        bos_token_id, eos_token_id, chat_template = None, of.eos_token_id, None

        def __call__(self, texts, **settings):
            seen.extend([texts] if isinstance(texts, str) else texts)
            return of(texts, **settings)

    codec = PromptTokenizer(Counting())
    demos = [f"Review: film {'abcdefgh'[n]} is fine\nSentiment: good\n\n" for n in range(8)]
    labels = [f" label {c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    seen.clear()
    prompts = ["".join(demos[n:] + demos[:n]) + f"Review: it is {n}\nSentiment:" for n in range(8)]
    pairs = codec.pairs([(prompt, label) for prompt in prompts for label in labels])
    assert [p.ids for p in pairs] == [plain(of, prompt + label) for prompt in prompts for label in labels]
    characters = sum(map(len, seen))
    assert characters < len("".join(demos)) + 8 * 30 + 26 * 25 + 100  # each demonstration, query and label once


def test_lines_are_cut_where_one_begins_with_a_letter():
    text = "\nReview: a\n\nb\n1\n c\nd"
    parts = lines_of(text)
    assert "".join(p[:-1] for p in parts[:-1]) + parts[-1] == text
    assert parts == ["\nR", "Review: a\n\nb", "b\n1\n c\nd", "d"]
