"""``iclkit train`` from the command line: one whole training with a fake LM, and all that can be asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.testing import FakeLM, HashEmbedder

from ..lm.openai_server import ToyServer
from .eval_worlds import call, write_task

pytest.importorskip("datasets", reason="training needs the train extra")
SMALL = tuple(
    word
    for pair in ("queries=6", "held_out=2", "report=3", "candidates=random:4", "max_steps=2", "batch_size=3")
    for word in ("--set", pair)
)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder that is a bag of random word vectors."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "train", "test", "owl", "cat", "dog", "eel", "fox", "hen", "cow", "bee", "pie", "ham", "jam",
             "egg", "fig", "nut", "pea", "oat", *map(str, range(40)), "animal", "food"]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bag") / "bag"
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch, home: Path) -> FakeLM:
    """The LM is a fake; embedders are folders and stay what they are."""
    fake = FakeLM()
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: fake)
    monkeypatch.setattr("iclkit.cli._kit.fetch", lambda *a, **k: None)
    monkeypatch.setattr("iclkit.models.must_be_fetched", lambda name: False)
    return fake


@pytest.fixture
def light(lm: FakeLM, bag: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLM:
    """Every base is the bag, and nothing is encoded with it: for what is done before anything is trained."""
    monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: bag)
    monkeypatch.setattr("iclkit.trainers._train.load_embedder", lambda *a, **k: HashEmbedder())
    return lm


@pytest.fixture
def task(tmp_path: Path) -> str:
    return str(write_task(tmp_path / "things"))


@pytest.fixture
def pool(tmp_path: Path) -> str:
    with Pool.open(tmp_path / "demos.db") as store:
        store.add(
            Example(f"{name} {n} {word}", label, task=name)
            for name in ("first", "second")
            for n in range(30)
            for word, label in (("owl", "animal"), ("pie", "food"))
        )
    return str(tmp_path / "demos.db")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- a whole training --


def test_a_training_says_its_price_makes_a_folder_and_is_not_done_twice(lm, task, bag, tmp_path, capsys) -> None:
    out = tmp_path / "made"
    words = ("train", "epr", task, "--out", str(out), *SMALL, "--set", f"base={bag}")
    code, stdout, stderr = call(*words, capsys=capsys)
    assert code == 0, stderr
    assert "32 prompts with 64 answers to score for a start, 0 of them known" in stderr
    assert "things · one demonstration · 3 queries" in stdout
    assert "oracle" in stdout
    assert f"iclkit eval TASK -s knn --embedder {out}" in stderr
    asked = len(lm.scored)
    code, stdout, stderr = call(*words, "--json", capsys=capsys)
    assert code == 0, stderr
    assert "is finished; nothing to do" in stderr
    card = json.loads(stdout)
    assert (card["method"], card["lm"]["name"], card["folder"]) == ("epr", "fake", str(out))
    assert card["config"]["max_steps"] == 2
    assert len(lm.scored) == asked
    code, stdout, stderr = call("select", str(out), "x", "--embedder", str(out), capsys=capsys)
    assert code == 1  # a retriever is no pool


def test_scores_are_made_first_exported_and_taken_by_another_training(light, task, tmp_path, capsys) -> None:
    words = ("train", "epr", task, *SMALL)
    code, stdout, stderr = call(*words, "--out", str(tmp_path / "a"), "--score-only", capsys=capsys)
    assert (code, stdout) == (0, "")
    assert "the ledger holds the scores of 32 of these 32 prompts" in stderr
    before = tree(tmp_path / "a.work")
    file = tmp_path / "scores.jsonl"
    code, _, stderr = call(*words, "--out", str(tmp_path / "a"), "--export-scores", str(file), capsys=capsys)
    assert code == 0
    assert f"32 lines written to {file}" in stderr
    assert before["training.json"] == tree(tmp_path / "a.work")["training.json"]
    asked = len(light.scored)
    code, _, stderr = call(
        *words, "--out", str(tmp_path / "b"), "--import-scores", str(file), "--score-only", capsys=capsys
    )
    assert code == 0
    assert f"32 scores taken from {file}" in stderr
    assert "32 prompts with 64 answers to score for a start, 64 of them known" in stderr
    assert len(light.scored) == asked
    file.write_text('{"logprobs": [1]}')
    code, _, stderr = call(*words, "--out", str(tmp_path / "c"), "--import-scores", str(file), capsys=capsys)
    assert code == 1
    assert stderr.splitlines()[-1] == f"error: {file}, line 1: field query is missing"


def test_a_pool_of_several_tasks_and_an_instruction_for_one_of_them(light, pool, tmp_path, capsys) -> None:
    few = [word for name in ("list_size=3", "positives=1", "negatives=1") for word in ("--set", name)]
    words = ("train", "udr", pool, "--out", str(tmp_path / "out"), *SMALL, *few, "--instruction", "first=Say what")
    code, _, stderr = call(*words, "--score-only", capsys=capsys)
    assert code == 0, stderr
    assert "64 prompts with 128 answers to score for a start" in stderr  # two tasks of 6 and 2 queries, 4 candidates
    code, _, stderr = call(*words[:-1], "third=Say", "--dry-run", capsys=capsys)
    assert code == 2
    assert stderr.splitlines()[-1] == "error: --instruction is for 'third', and the tasks here are first, second"


def test_one_retriever_is_trained_on_all_tasks_of_a_pool(lm, pool, bag, tmp_path, capsys) -> None:
    from iclkit.embed import load_embedder

    few = ("iterations=1", "list_size=3", "positives=1", "negatives=1", f"base={bag}")
    more = [word for pair in few for word in ("--set", pair)]
    code, stdout, stderr = call(
        "train", "udr", pool, "--out", str(tmp_path / "out"), *SMALL, *more, "--instruction", "first=Say what it is",
        "--json", capsys=capsys,
    )  # fmt: skip
    assert code == 0, stderr
    card = json.loads(stdout)
    assert [(t["name"], t["rows"], t["queries"]) for t in card["tasks"]] == [("first", 60, 6), ("second", 60, 6)]
    assert [(r["task"], r["queries"]) for r in card["report"]] == [("first", 3), ("second", 3)]
    assert all(w["right"] for r in card["report"] for w in r["ways"])
    assert card["rendering"]["instructions"] == {"first": "Say what it is:", "second": "second:"}
    retriever = load_embedder(str(tmp_path / "out"), dtype="fp32")
    assert retriever.trained_on == ("first", "second")
    example = Example("0 owl", "animal", task="first")
    assert retriever.document_text(example) == "Say what it is: 0 owl\tanimal"
    assert not (retriever.for_task("first").encode_queries(["owl"]) == retriever.encode_queries(["owl"])).all()

    file = tmp_path / "out" / "iclkit.json"
    words = ("eval", str(write_task(tmp_path / "third")), "-s", "knn", "-k", "1", "--embedder", str(tmp_path / "out"))
    bare = (
        f"note: {tmp_path / 'out'} was trained with an instruction for each task and has none for third, whose texts "
        f"it reads without; add one to rendering.instructions in {file}"
    )
    code, _, stderr = call(*words, "--out", str(tmp_path / "bare"), capsys=capsys)
    assert code == 0, stderr
    assert bare in stderr.splitlines()
    card["rendering"]["instructions"]["third"] = "Name the kind:"
    file.write_text(json.dumps(card))
    code, _, stderr = call(*words, "--out", str(tmp_path / "told"), capsys=capsys)
    assert code == 0, stderr
    assert "has none for third" not in stderr


def test_the_time_on_a_known_card_is_said_where_it_is_a_minute_or_more() -> None:
    from iclkit.cli._train import reading_time

    long = reading_time("gpt-neo-2.7b", 944_000_000)
    assert long.endswith("about 11 hours of an A100 at 40 % of its peak in bf16, not measured")
    assert reading_time("smollm2-135m", 44_000) == ""


# -- nothing is changed --


def test_a_dry_run_says_the_price_and_changes_nothing(light, task, tmp_path, capsys) -> None:
    words = ("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL)
    before = tree(tmp_path)
    code, stdout, stderr = call(*words, "--dry-run", capsys=capsys)
    assert (code, stdout) == (0, "")
    assert "fake: 32 prompts with 64 answers to score for a start, 0 of them known; about " in stderr
    assert light.scored == []
    assert tree(tmp_path) == before
    assert not (tmp_path / "out.work").exists()
    # ... so that other settings can follow without --restart
    code, _, stderr = call(*words, "--set", "batch_size=2", "--score-only", capsys=capsys)
    assert code == 0, stderr


def test_a_base_that_is_not_there_changes_nothing(lm, bag, task, tmp_path, capsys) -> None:
    words = ("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL)
    before = tree(tmp_path)
    code, _, stderr = call(*words, "--set", f"base={tmp_path / 'nowhere'}", capsys=capsys)
    assert (code, "no model folder" in stderr) == (1, True)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out.work").exists()
    code, _, stderr = call(*words, "--set", f"base={bag}", "--score-only", capsys=capsys)  # no --restart
    assert code == 0, stderr


def test_a_disk_that_is_full_while_a_library_saves_is_one_line(light, task, tmp_path, capsys, monkeypatch) -> None:
    class LibraryError(Exception): ...

    def full(self):
        raise LibraryError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("iclkit.trainers.Training.run", full)
    words = ("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL)
    code, stdout, stderr = call(*words, capsys=capsys)
    assert (code, stdout) == (1, "")
    assert stderr.splitlines()[-1].startswith("error: Error while serializing: I/O error: No space left on device")
    assert "free space and give the same command again" in stderr
    monkeypatch.setattr("iclkit.trainers.Training.run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(*words, capsys=capsys)


def test_a_dry_run_of_a_restart_throws_nothing_away(light, task, tmp_path, capsys) -> None:
    words = ("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL)
    call(*words, "--score-only", capsys=capsys)
    (tmp_path / "out.work" / "model-0").mkdir()
    (tmp_path / "out.work" / "model-0" / "weights").write_text("dear")
    note = (tmp_path / "out.work" / "training.json").read_text()
    other = (*words, "--set", "batch_size=2")
    code, _, stderr = call(*other, "--dry-run", capsys=capsys)
    assert (code, "batch_size was 3" in stderr, "give --restart" in stderr) == (2, True, True)
    code, _, stderr = call(*other, "--restart", "--dry-run", capsys=capsys)
    assert code == 0
    assert "32 prompts with 64 answers to score for a start, 64 of them known" in stderr
    assert (tmp_path / "out.work" / "training.json").read_text() == note
    assert (tmp_path / "out.work" / "model-0" / "weights").read_text() == "dear"
    code, _, _ = call(*other, "--restart", "--score-only", capsys=capsys)
    assert (code, (tmp_path / "out.work" / "model-0").exists()) == (0, False)


def test_settings_are_printed_as_json_without_looking_at_anything(home, tmp_path, capsys) -> None:
    code, stdout, _ = call(
        "train", "udr", "none.db", "--out", str(tmp_path / "out"), "--settings", "--preset", "paper", "--seed", "7",
        "--set", "queries=30", "--set", "cross_task=true", "--set", "learning_rate=2e-4", capsys=capsys,
    )  # fmt: skip
    told = json.loads(stdout)
    assert code == 0
    assert (told["method"], told["preset"], told["seed"], told["queries"]) == ("udr", "paper", 7, 30)
    assert (told["cross_task"], told["learning_rate"], told["iterations"]) == (True, 2e-4, 3)
    assert [*tmp_path.iterdir()] == []


def test_an_out_that_holds_something_is_refused_and_left_alone(light, task, tmp_path, capsys) -> None:
    for name, content in (("mine.txt", "mine"), ("iclkit.json", "{"), ("iclkit.json", '{"key": "another"}')):
        out = tmp_path / f"out-{name}-{len(content)}"
        out.mkdir()
        (out / name).write_text(content)
        code, stdout, stderr = call("train", "epr", task, "--out", str(out), *SMALL, capsys=capsys)
        assert (code, stdout) == (1, "")
        assert "give another --out, or remove it" in stderr.splitlines()[-1]
        assert tree(out) == {name: content.encode()}
        assert not (tmp_path / f"{out.name}.work").exists()


def test_out_may_be_the_folder_one_stands_in(light, task, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, stderr = call("train", "epr", task, "--out", ".", *SMALL, "--score-only", capsys=capsys)
    assert code == 0, stderr
    assert (tmp_path / "here.work" / "ledger.db").is_file()


def test_a_restart_keeps_the_users_own_ledger(light, task, tmp_path, capsys) -> None:
    ledger = tmp_path / "out.work" / "scores.db"
    words = ("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL, "--ledger", str(ledger), "--score-only")
    call(*words, capsys=capsys)
    asked = len(light.scored)
    code, _, stderr = call(*words, "--restart", "--set", "batch_size=2", capsys=capsys)
    assert code == 0, stderr
    assert len(light.scored) == asked


# -- what is asked wrongly --


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--set", "querys=3"], 2, "no setting of training method 'epr' named 'querys'. Did you mean 'queries'?"),
        (["--set", "trade_off=0.1"], 2, "no setting of training method 'epr' named 'trade_off'"),
        (["--set", "queries=many"], 2, "training method 'epr': queries is many; give a whole number of 0 or more"),
        (["--set", "queries"], 2, "--set 'queries' is not KEY=VALUE"),
        (["--set", "cross_task=perhaps"], 2, "cross_task is perhaps; give true or false"),
        (["--set", "method=udr"], 2, "no setting of training method 'epr' named 'method'"),
        (["--set", "preset=paper"], 2, "no setting of training method 'epr' named 'preset'"),
        (["--set", "similarity=cosine"], 2, "similarity is cosine; choose from cos, dot"),
        (["--set", "hard_negatives=-1"], 2, "hard_negatives is -1; give a whole number of 0 or more"),
        (["--set", "max_steps=-5"], 2, "max_steps is -5; give a whole number of 0 or more"),
        (["--set", "positives=0"], 2, "positives is 0; give a whole number of 1 or more"),
        (["--set", "warmup=5"], 2, "warmup is 5.0; give a number from 0 to 1"),
        (["--set", "learning_rate=NaN"], 2, "learning_rate is nan; give a finite number above 0"),
        (["--set", "max_steps=0", "--set", "epochs=-1"], 2, "epochs is -1.0; give a finite number of 0 or more"),
        (["--set", "candidates=bm25"], 2, "write SELECTOR:COUNT"),
        (["--set", "candidates=bm26:3"], 2, "no selector named 'bm26'. Did you mean 'bm25'?"),
        (["--set", "held_out=100"], 1, "add examples, or lower held_out and report"),
        (["--seed", "-1"], 2, "seed is -1; give a whole number of 0 or more"),
        (["--preset", "big"], 2, "no preset named 'big'"),
        (["--instruction", "other=Say"], 2, "--instruction is for 'other', and the tasks here are things"),
        (["--instruction", "Say"], 2, "--instruction 'Say' is not KEY=VALUE"),
        (["--export-scores", "s.jsonl", "--layout", "llmr"], 2, "no layout named 'llmr'. Did you mean 'llm-r'?"),
        (["--import-scores", "none.jsonl"], 1, "cannot read none.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_exit_code(words, code, says, light, task, tmp_path, capsys) -> None:
    got, stdout, stderr = call("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL, *words, capsys=capsys)
    assert (got, stdout) == (code, ""), stderr
    assert says in stderr.splitlines()[-1]
    assert stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_methods_of_the_room() -> None:
    from iclkit.cli._train import command
    from iclkit.trainers import METHODS

    (choice,) = [p.type.choices for p in command.params if p.name == "method"]
    assert tuple(choice) == tuple(METHODS)


def test_a_method_that_does_not_exist_is_a_usage_error(light, task, tmp_path, capsys) -> None:
    code, _, stderr = call("train", "eprr", task, "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 2
    assert "'eprr'" in stderr
    assert "'epr', 'udr', 'llm-r', 'se2', 'ceil'" in stderr


@pytest.mark.parametrize("first", [True, False])
def test_a_pool_among_tasks_is_refused(first, light, pool, task, tmp_path, capsys) -> None:
    both = (pool, task) if first else (task, pool)
    code, _, stderr = call("train", "epr", *both, "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 2
    assert stderr.splitlines()[-1] == f"error: {pool} is a pool; give one pool alone, or tasks"


def test_a_pool_that_is_not_there_or_empty_and_a_task_that_is_not_there_say_so(light, tmp_path, capsys) -> None:
    out = ("--out", str(tmp_path / "out"))
    code, _, stderr = call("train", "epr", str(tmp_path / "none.db"), *out, capsys=capsys)
    assert (code, stderr.startswith(f"error: no pool at {tmp_path / 'none.db'}")) == (1, True)
    assert not (tmp_path / "none.db").exists()
    Pool.open(tmp_path / "empty.db").close()
    code, _, stderr = call("train", "epr", str(tmp_path / "empty.db"), *out, capsys=capsys)
    assert (code, "the pool is empty; add examples with" in stderr) == (1, True)
    code, _, stderr = call("train", "epr", "sst22", *out, capsys=capsys)
    assert (code, "no task named 'sst22'. Did you mean 'sst2'?" in stderr) == (2, True)


def test_without_the_extra_it_says_which_before_anything_is_loaded(light, task, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("iclkit.trainers._prepare.find_spec", lambda name: None)
    monkeypatch.setattr("iclkit.lm.load_lm", lambda *a, **k: pytest.fail("the LM was loaded"))
    code, stdout, stderr = call("train", "epr", task, "--out", str(tmp_path / "out"), *SMALL, capsys=capsys)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: training needs the extra iclkit[train]; install it with: pip install ")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out.work").exists()


def test_feedback_comes_by_batch_and_the_training_asks_no_more(
    home: Path,
    bag: Path,
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("iclkit.models.resolve", lambda *a, **k: bag)
    monkeypatch.setattr("iclkit.trainers._train.load_embedder", lambda *a, **k: HashEmbedder())
    server = ToyServer("completions", "echo", "models", "batch", window=4000)
    words = ["train", "epr", task, "--lm", f"openai:toy@{server.url}", "--out", str(tmp_path / "out"), "--score-only"]
    try:
        code, _, err = call(*words, *SMALL, "--batch", capsys=capsys)
        assert (code, server.asked["/v1/batches"]) == (0, 1), err
        before = server.asked["/v1/completions"]
        code, _, err = call(*words, *SMALL, capsys=capsys)
        assert code == 0
        assert server.asked["/v1/completions"] <= before + 2  # the questions that open it
    finally:
        server.close()
