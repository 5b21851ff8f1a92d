"""Layouts of rows that many tools write, as a table: each knows its rows when it sees them, and says how to read them.

A layout is asked about the first rows of a file. It names columns, or gives a function that makes of each row one with
``input``, ``output``, ``choices`` and ``meta``. The first layout of ``LAYOUTS`` that knows the rows is taken, where the
user names no columns. To add one, write a function and put it into the table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any, TypeAlias

from iclkit.datasets._formats import kind_of
from iclkit.errors import DataError
from iclkit.files import parse_json

Row: TypeAlias = Mapping[str, Any]
ANSWERS = {
    "answer", "annotation", "category", "class", "completion", "expected", "gold", "intent", "label", "label_text",
    "gold_label", "labels", "output", "response", "sentiment", "summary", "tags", "target", "topics", "translation",
}  # fmt: skip
QUESTIONS = {
    "article", "content", "dialogue", "document", "input", "instruction", "message", "passage", "premise",
    "problem", "prompt", "query", "question", "review", "sentence", "source", "stem", "text", "tweet", "utterance",
}  # fmt: skip
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("sentence_a", "sentence_b"),
    ("text1", "text2"), ("context", "question"), ("passage", "question"), ("query", "passage"), ("text", "aspect"),
)  # fmt: skip
OTHER_ANSWERS = {
    "code", "expected_output", "expectedoutput", "ground_truth", "outputs", "reference", "reference_answer", "solution",
    "sql", "targets", "tgt",
}  # fmt: skip
OTHER_QUESTIONS = {"inputs", "q", "src", "user_input"}
"""Answers and questions as well, where no column is called as one of the above."""
GROUNDS = {"article", "background", "context", "document", "passage", "premise", "scenario", "support"}
"""What a question is about, and cannot be answered without."""
SIDE = {"id", "idx", "index", "meta", "split", "task"}


@dataclass(frozen=True, slots=True)
class Found:
    """How to read the rows. ``rewrite`` makes of a row one with ``input``, ``output``, ``choices`` and ``meta``, and
    ``uses`` are the columns that it reads; or the columns are named. ``said``: one line for the user."""

    said: str = ""
    rewrite: Callable[[Row], dict[str, Any]] | None = None
    uses: frozenset[str] = frozenset()
    input: tuple[str, ...] = ()
    output: str = ""
    choices: tuple[str, ...] = ()
    choice_keys: str = ""
    meta: tuple[str, ...] = ()
    metric: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout by name. ``look`` is given the first rows, at least one; None: they are not its own."""

    name: str
    what: str
    look: Callable[[Sequence[Row]], Found | None] = field(repr=False)


def _have(rows: Sequence[Row], *names: str) -> bool:
    return all(name in row for row in rows for name in names)


# --- instruction data and chats -------------------------------------------------------------------------------------


def _alpaca(rows: Sequence[Row]) -> Found | None:
    first = rows[0]
    answer = next((name for name in ("output", "response") if name in first), "")
    beside = next((name for name in ("input", "context") if name in first), "")
    if not answer or not _have(rows, "instruction", answer):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        parts = [text for name in ("instruction", beside) if (text := str(row.get(name) or "").strip())]
        return {"input": "\n\n".join(parts), "output": row.get(answer)}

    said = "Alpaca rows: the instruction"
    if beside:
        said += f" and {beside} as one text (--input instruction --input {beside}: as two fields)"
    return Found(said, rewrite, frozenset({"instruction", beside, answer} - {""}))


_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "answer": "assistant",
    "system": "system", "developer": "system", "tool": "tool", "function": "tool", "observation": "tool",
    "function_call": "assistant",
}  # fmt: skip
_TURNS = ("messages", "conversations", "conversation", "dialog", "contents")


def _is_turns(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and ({"role", "from"} & set(turn)) for turn in value)
    )


def _chat(rows: Sequence[Row]) -> Found | None:
    column = next((name for name in _TURNS if all(_is_turns(row.get(name)) for row in rows)), "")
    halves = () if column else ("prompt", "completion")
    if not column and not all(_is_turns(row.get(half)) for row in rows for half in halves):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        turns = [*(row.get(column) or ())] if column else [turn for half in halves for turn in row.get(half) or ()]
        return _exchange([_turn(turn) for turn in turns], column or "completion")

    said = "chat rows, read by role: the last user turn is the input, earlier turns are its context"
    return Found(said, rewrite, frozenset({column} if column else halves))


def _ideal(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "input", "ideal") or not all(_is_turns(row["input"]) for row in rows):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        answers = _texts_of(row["ideal"])
        read = _exchange([_turn(turn) for turn in row["input"]], "input")
        return {**read, "output": answers[0], "meta": {**read["meta"], **_more(answers)}}

    return Found("OpenAI evals rows: the last user turn is the input, the first ideal answer the output", rewrite,
                 frozenset({"input", "ideal"}))  # fmt: skip


def _turn(turn: object) -> tuple[str, Any]:
    """(role, text) of a turn, in the spelling of OpenAI or of ShareGPT; function calls stay objects."""
    if not isinstance(turn, Mapping):
        raise DataError(f"a turn is {kind_of(turn)}, not an object with a role and a content")
    said = str(turn.get("role") or turn.get("from") or "")
    role = _ROLES.get(said.lower())
    if role is None:
        raise DataError(f"a turn has the role {said!r}; known: {', '.join(_ROLES)}")
    content = next((turn[name] for name in ("content", "value", "parts") if name in turn), None)
    if isinstance(content, list):  # parts, of which the texts are read
        content = "".join(str(p.get("text", "")) if isinstance(p, Mapping) else str(p) for p in content)
    if not content and (calls := turn.get("tool_calls") or turn.get("function_call")):
        return role, _calls(calls)
    return role, content if isinstance(content, str) else ""


def _calls(calls: Any) -> Any:
    """Function calls with their arguments as values: one as an object, several as a list."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = parse_json(arguments or "{}", "the arguments of a call")
        found.append({"name": inner.get("name"), "arguments": arguments})
    return found[0] if len(found) == 1 else found


def _exchange(turns: Sequence[tuple[str, Any]], column: str) -> dict[str, Any]:
    """The last user turn as input, the answer to it as output; the system text as metadata."""
    system = "\n\n".join(text.strip() for role, text in turns if role == "system" and text.strip())
    talk = [(role, text) for role, text in turns if role != "system"]
    answer = talk.pop()[1] if talk and talk[-1][0] == "assistant" else None
    asked = max((n for n, (role, _) in enumerate(talk) if role == "user"), default=-1)
    if asked < 0:
        raise DataError(f"field {column!r} has no user turn; remove the row")
    query = "\n".join([str(talk[asked][1]), *_transcript(talk[asked + 1 :])])
    context = "\n".join(_transcript(talk[:asked]))
    meta = {"system": system} if system else {}
    return {"input": {"context": context, "input": query} if context else query, "output": answer, "meta": meta}


def _transcript(turns: Sequence[tuple[str, Any]]) -> list[str]:
    texts = [(role, text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)) for role, text in turns]
    return [f"{role.capitalize()}: {text.strip()}" for role, text in texts]


def _preference(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "prompt", "chosen", "rejected"):
        return None
    if not all(isinstance(row[name], str) for row in rows for name in ("prompt", "chosen", "rejected")):
        return None
    return Found("preference rows: the chosen answer is the output", input=("prompt",), output="chosen",
                 meta=("rejected",))  # fmt: skip


# --- questions with options -----------------------------------------------------------------------------------------

_LETTERED = re.compile(r"(?:option|choice|opt|answer|op)?[_ ]?([a-j])", re.I)
_NUMBERED = re.compile(r"(?:option|choice|opt|ending|answer|sol)[_ ]?(\d)", re.I)


def option_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that hold one option each: ``A B C D``, ``option_a …``, ``choice1 …``, ``ending0 …``."""
    lettered = {m.group(1).upper(): n for n in names if (m := _LETTERED.fullmatch(n))}
    run = [lettered[c] for c in ascii_uppercase[: len(lettered)] if c in lettered]
    if len(run) >= 2 and len(run) == len(lettered):
        return tuple(run)
    numbered = sorted((int(m.group(1)), n) for n in names if (m := _NUMBERED.fullmatch(n)))
    first = numbered[0][0] if numbered else 0
    if len(numbered) >= 2 and first in (0, 1) and [n for n, _ in numbered] == [*range(first, first + len(numbered))]:
        return tuple(name for _, name in numbered)
    return ()


_KEYS = ("answerKey", "answer_key", "answer", "label", "gold", "correct", "correct_answer", "correct_option", "cop",
         "target", "output")  # fmt: skip
_STEMS = (
    "question", "query", "ctx", "sentence", "goal", "stem", "question_stem", "problem", "input", "text", "prompt",
)  # fmt: skip


def _options(rows: Sequence[Row]) -> Found | None:
    """Multiple choice: an option a column (MMLU), or all in one list (the hub's MMLU, HellaSwag), or with their keys
    (ARC, CommonsenseQA, OpenBookQA); with what the question is about, where a column has that (COPA, RACE, LogiQA)."""
    first = rows[0]
    listed = next((n for n in ("choices", "options", "endings") if all(_is_options(r.get(n)) for r in rows)), "")
    columns = option_columns([*first])
    inside = all(isinstance(r.get("question"), Mapping) and {"stem", "choices"} <= set(r["question"]) for r in rows)
    key = next((name for name in _KEYS if _have(rows, name) and name not in columns), "")
    stem = "question.stem" if inside else next((name for name in _STEMS if _have(rows, name) and name != key), "")
    if not key or not stem or (not columns and not listed and not inside):
        return None
    if listed and {"input", "output"} <= set(first):
        return None  # rows of our own, which say by themselves how they are read
    grounds = [
        n
        for n in first
        if n in GROUNDS and _have(rows, n) and any(isinstance(r[n], str) and r[n].strip() for r in rows)
    ]
    inputs = tuple(sorted((*grounds, stem), key=[*first].index)) if not inside else (stem,)
    about = f"input {', '.join(inputs)}; " if len(inputs) > 1 else ""
    if columns and not listed and not inside:
        said = f"multiple choice: {about}options {', '.join(columns)}, answer {key!r} (--choices, --output)"
        return Found(said, input=inputs, output=key, choices=columns, kind="multiple_choice")
    place = "question.choices" if inside else listed
    said = f"multiple choice: {about}options in {place!r}, answer {key!r} (--choices, --output)"
    keyed = isinstance(first.get(place), Mapping)
    return Found(said, input=inputs, output=key, kind="multiple_choice",
                 choices=(f"{place}.text" if keyed else place,),
                 choice_keys=f"{place}.label" if keyed and "label" in first[place] else "")  # fmt: skip


def _is_options(value: object) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("text"), list) and bool(value["text"])
    return isinstance(value, list) and len(value) > 1 and all(
        isinstance(v, str) or (isinstance(v, Mapping) and "text" in v) for v in value
    )  # fmt: skip


# --- question answering, and other tools' rows ----------------------------------------------------------------------


def _squad(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "question", "context", "answers"):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        found = row.get("answers") or []
        texts = found.get("text", []) if isinstance(found, Mapping) else [a.get("text") for a in found]
        if not texts:
            raise DataError("the question has no answer (field 'answers' is empty); --on-bad-row skip leaves it out")
        fields = {"context": row.get("context"), "question": row.get("question")}
        return {"input": fields, "output": texts[0], "meta": _more([*dict.fromkeys(texts)])}

    return Found("SQuAD rows: context and question, first answer; all answers are kept as metadata", rewrite,
                 frozenset({"question", "context", "answers"}), metric="token_f1")  # fmt: skip


def _texts_of(value: object) -> list[str]:
    """The answers that a cell holds: a text, a list of them, or a value with its aliases (TriviaQA)."""
    if isinstance(value, Mapping) and "value" in value:
        value = [value["value"], *(value.get("aliases") or ())]
    found = [*dict.fromkeys(str(v) for v in (value if isinstance(value, list) else [value]) if v is not None)]
    if not found:
        raise DataError("the question has no answer; --on-bad-row skip leaves it out")
    return found


def _more(answers: Sequence[Any]) -> dict[str, Any]:
    return {"answers": [*answers]} if len(answers) > 1 else {}


def _open_questions(rows: Sequence[Row]) -> Found | None:
    """A question whose right answers are listed: Natural Questions, WebQuestions, TriviaQA."""
    column = next((name for name in ("answer", "answers") if _have(rows, "question", name)), "")
    cells = [row[column] for row in rows] if column else []
    if not cells or not all(
        (isinstance(c, list) and all(isinstance(t, str) for t in c)) or (isinstance(c, Mapping) and "value" in c)
        for c in cells
    ):
        return None
    inputs = [name for name in rows[0] if name in GROUNDS | {"question"}]

    def rewrite(row: Row) -> dict[str, Any]:
        answers = _texts_of(row[column])
        given = {name: row.get(name) for name in inputs}
        return {"input": given if len(given) > 1 else row["question"], "output": answers[0], "meta": _more(answers)}

    said = f"questions with listed answers: the first of {column!r} is the output; all are kept as metadata"
    return Found(said, rewrite, frozenset({*inputs, column}), metric="token_f1")


def _inference(rows: Sequence[Row]) -> Found | None:
    """SNLI and MultiNLI as they are distributed, where annotators who do not agree leave a dash."""
    pair = next((p for p in PAIRS[:2] if _have(rows, *p, "gold_label")), None)
    if pair is None:
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        if row.get("gold_label") == "-":
            raise DataError(
                "field 'gold_label' is '-': the annotators did not agree; --on-bad-row skip leaves the row out"
            )
        return {"input": {name: row.get(name) for name in pair}, "output": row.get("gold_label")}

    return Found(f"inference rows: input {', '.join(pair)}; output gold_label (--input, --output)", rewrite,
                 frozenset({*pair, "gold_label"}))  # fmt: skip


def _recorded(rows: Sequence[Row]) -> Found | None:
    """Data sets of tracing and evaluation tools: LangSmith's inputs and outputs, MLflow's expectations."""
    answer = next((n for n in ("reference_outputs", "outputs", "expectations") if _have(rows, "inputs", n)), "")
    if not answer or not all(isinstance(row[name], Mapping) for row in rows for name in ("inputs", answer)):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        given, wanted = ({k: v for k, v in row[n].items() if v is not None} for n in ("inputs", answer))
        wanted = {"": wanted["expected_response"]} if "expected_response" in wanted else wanted
        return {"input": next(iter(given.values())) if len(given) == 1 else given,
                "output": next(iter(wanted.values())) if len(wanted) == 1 else wanted or None}  # fmt: skip

    said = f"recorded rows: inputs; {answer} (--input, --output)"
    return Found(said, rewrite, frozenset({"inputs", answer}))


def _big_bench(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "input") or not all("target" in r or "target_scores" in r for r in rows):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        scores = row.get("target_scores")
        if isinstance(scores, Mapping) and scores:
            return {"input": row["input"], "output": max(scores, key=lambda c: scores[c]), "choices": [*scores]}
        target = row.get("target")
        texts = target if isinstance(target, list) else [target]
        return {"input": row["input"], "output": texts[0] if texts else None, "meta": _more(texts)}

    return Found("BIG-bench rows: target, or the best of target_scores", rewrite,
                 frozenset({"input", "target", "target_scores"}))  # fmt: skip


_DSPY_SIDE = {"augmented", "rationale", "reasoning", "dspy_uuid", "dspy_split"}


def _dspy(rows: Sequence[Row]) -> Found | None:
    if not any({"augmented", "rationale", "reasoning"} & set(row) for row in rows):
        return None
    names = [name for name in rows[0] if name not in _DSPY_SIDE]
    if len(names) < 2 or not all(isinstance(rows[0][n], str | int | float | bool) for n in names):
        return None
    output = next((n for n in names if n in ANSWERS), names[-1])

    def rewrite(row: Row) -> dict[str, Any]:
        inputs = {n: row.get(n) for n in names if n != output}
        meta = {n: row[n] for n in ("rationale", "reasoning") if row.get(n)}
        return {"input": inputs if len(inputs) > 1 else next(iter(inputs.values())), "output": row.get(output),
                "meta": meta}  # fmt: skip

    return Found(f"DSPy demonstrations: {output!r} is the output, reasoning is kept as metadata (--input, --output)",
                 rewrite, frozenset({*names, *_DSPY_SIDE}))  # fmt: skip


_ASSERTION = re.compile(r"\s*(equals|iequals|contains|icontains|starts-with)\s*:\s*(.*)", re.S)
_OTHER_ASSERTION = re.compile(r"\s*(?:not-)?[a-z]+(?:-[a-z]+)*(?:\([\d.]+\))?\s*:\s*\S")


def _promptfoo(rows: Sequence[Row]) -> Found | None:
    if not any(name.startswith("__expected") for name in rows[0]):
        return None
    expected = next(name for name in rows[0] if name.startswith("__expected"))
    names = [name for name in rows[0] if not name.startswith("__")]

    def rewrite(row: Row) -> dict[str, Any]:
        text = str(row.get(expected) or "")
        if found := _ASSERTION.fullmatch(text):
            text = found.group(2)
        elif _OTHER_ASSERTION.match(text):
            raise DataError(f"{expected} is {text[:40]!r}, an assertion that names no answer; --on-bad-row skip leaves "
                            "such rows out")  # fmt: skip
        inputs = {name: row.get(name) for name in names}
        return {"input": inputs if len(names) > 1 else next(iter(inputs.values()), ""), "output": text}

    said = f"promptfoo rows: {expected} is the output, without its assertion"
    return Found(said, rewrite, frozenset({*names, expected}))


def _flag_embedding(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "query", "pos") or not all(isinstance(row["pos"], list) for row in rows):
        return None
    kept = tuple(name for name in ("pos", "neg") if name in rows[0])
    return Found("FlagEmbedding rows: the first of pos is the output; pos and neg are kept as metadata",
                 input=("query",), output="pos.0", meta=kept)  # fmt: skip


def _prodigy(rows: Sequence[Row]) -> Found | None:
    if not _have(rows, "text", "accept", "answer") or not all(isinstance(row["accept"], list) for row in rows):
        return None

    def rewrite(row: Row) -> dict[str, Any]:
        if row["answer"] != "accept" or not row["accept"]:
            raise DataError(
                f"the annotator chose nothing (answer {row['answer']!r}); --on-bad-row skip leaves the row out"
            )
        names = {o["id"]: o.get("text", o["id"]) for o in row.get("options") or () if isinstance(o, Mapping)}
        chosen = [str(names.get(key, key)) for key in row["accept"]]
        return {"input": row["text"], "output": chosen if len(chosen) > 1 else chosen[0]}

    uses = frozenset({"text", "accept", "answer", "options", "config", *(n for n in rows[0] if n.startswith("_"))})
    return Found("Prodigy choices: the accepted options are the output", rewrite, uses)


def _label_studio(rows: Sequence[Row]) -> Found | None:
    if not all(isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list) for row in rows):
        return None
    given = [[*_studio_answers(row)] for row in rows]
    questions = [*dict.fromkeys(name for answers in given for name, _ in answers)]
    if len(questions) > 1:
        raise DataError(f"Label Studio tasks with several questions ({', '.join(questions)}): export one as CSV, and "
                        "name its column with --output")  # fmt: skip

    def rewrite(row: Row) -> dict[str, Any]:
        counts = Counter(json.dumps(value) for _, value in _studio_answers(row))
        if not counts:
            raise DataError("the task has no annotation; --on-bad-row skip leaves the row out")
        data = {name: text for name, text in row["data"].items() if isinstance(text, str)}
        inputs = data if len(data) > 1 else next(iter(data.values()), "")
        return {"input": inputs, "output": json.loads(counts.most_common(1)[0][0])}

    return Found("Label Studio tasks: the answer that most annotators gave", rewrite, frozenset(rows[0]))


def _studio_answers(row: Row) -> Iterator[tuple[str, Any]]:
    """(question, answer) of each finished annotation: what was chosen or written, a list where that is several."""
    for annotation in row["annotations"]:
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        parts = annotation.get("result")
        for part in parts if isinstance(parts, list) else ():
            value = part.get("value") if isinstance(part, Mapping) else None
            found = (
                next((value[n] for n in ("choices", "text") if n in value), None)
                if isinstance(value, Mapping)
                else None
            )
            if isinstance(found, list) and found:
                yield str(part.get("from_name", "")), found if len(found) > 1 else found[0]


def _argilla(rows: Sequence[Row]) -> Found | None:
    if not all(isinstance(row.get("fields"), Mapping) for row in rows):
        return None
    questions = [*dict.fromkeys(
        name for row in rows for part in ("responses", "suggestions") for name in _answered(row.get(part))
    )]  # fmt: skip
    if len(questions) > 1:
        raise DataError(
            f"Argilla rows with several questions ({', '.join(questions)}): say which is the output, e.g. "
            f"--input fields --output responses.{questions[0]}.0.value"
        )

    def rewrite(row: Row) -> dict[str, Any]:
        fields = {k: v for k, v in row["fields"].items() if v is not None}
        answers = [*_answered(row.get("responses")).values()] or [*_answered(row.get("suggestions")).values()]
        counts = Counter(str(value) for value in answers[0]) if answers else Counter[str]()
        values = {str(value): value for value in (answers[0] if answers else ())}
        inputs = fields if len(fields) > 1 else next(iter(fields.values()), "")
        return {"input": inputs, "output": values[counts.most_common(1)[0][0]] if counts else None,
                "meta": dict(row.get("metadata") or {})}  # fmt: skip

    uses = frozenset({"fields", "responses", "suggestions", "metadata", "status", "vectors", "_server_id"})
    return Found("Argilla records: the answer that most annotators gave, else the suggestion", rewrite, uses)


def _answered(part: object) -> dict[str, list[Any]]:
    """Answers by question, of responses or suggestions in the spellings of Argilla 1 and 2."""
    found: dict[str, list[Any]] = {}
    if isinstance(part, Mapping):
        for name, given in part.items():
            items = given if isinstance(given, list) else [given]
            found[name] = [i["value"] if isinstance(i, Mapping) and "value" in i else i for i in items if i is not None]
    for item in part if isinstance(part, list) else ():
        values = item.get("values") if isinstance(item, Mapping) else None
        for name, given in (values or {}).items():
            found.setdefault(name, []).append(given["value"] if isinstance(given, Mapping) else given)
        if isinstance(item, Mapping) and "question_name" in item:
            found.setdefault(item["question_name"], []).append(item.get("value"))
    return {name: values for name, values in found.items() if values}


LAYOUTS = (
    Layout("chat", "messages with roles: OpenAI fine-tuning, ShareGPT, TRL", _chat),
    Layout("openai-evals", "OpenAI evals: input as messages, ideal", _ideal),
    Layout("squad", "SQuAD: context, question, answers", _squad),
    Layout("flagembedding", "FlagEmbedding: query, pos, neg", _flag_embedding),
    Layout("promptfoo", "promptfoo tests: variables, __expected", _promptfoo),
    Layout("prodigy", "Prodigy choices: text, options, accept", _prodigy),
    Layout("label-studio", "Label Studio tasks: data, annotations", _label_studio),
    Layout("argilla", "Argilla records: fields, responses", _argilla),
    Layout("dspy", "demonstrations of a DSPy program", _dspy),
    Layout("alpaca", "Alpaca: instruction, input, output", _alpaca),
    Layout("recorded", "data sets of LangSmith and MLflow: inputs, outputs or expectations", _recorded),
    Layout("preference", "preferences: prompt, chosen, rejected", _preference),
    Layout("multiple-choice", "options by column, by list or with keys: MMLU, ARC", _options),
    Layout("inference", "SNLI, MultiNLI: a pair of sentences, gold_label", _inference),
    Layout("open-questions", "Natural Questions, TriviaQA: question, listed answers", _open_questions),
    Layout("big-bench", "BIG-bench: input, target or target_scores", _big_bench),
)
"""In the order in which they are asked: those with telling names first."""


def recognize(rows: Sequence[Row]) -> tuple[str, Found] | None:
    """The layout that knows these first rows, and how it reads them; how their columns' names are written counts only
    where one is known as it is written."""
    known = _look(rows) if rows else None
    if known or not rows:
        return known
    names = {plain_name(name): name for row in rows for name in row}
    if len(names) < len({name for row in rows for name in row}) or all(plain == n for plain, n in names.items()):
        return None
    known = _look([_plainly(row) for row in rows])
    return (known[0], _as_written(known[1], names)) if known else None


def _look(rows: Sequence[Row]) -> tuple[str, Found] | None:
    return next(((layout.name, found) for layout in LAYOUTS if (found := layout.look(rows))), None)


def plain_name(column: object) -> str:
    """A column's name without capitals and blanks.

    >>> plain_name(" Gold Label")
    'gold_label'
    """
    return "_".join(str(column).casefold().split())


def _plainly(row: Row) -> dict[str, Any]:
    return {plain_name(name): value for name, value in row.items()}


def _as_written(found: Found, names: Mapping[str, str]) -> Found:
    """The same for rows whose columns have these names, by their plain ones."""

    def written(path: str) -> str:
        head, dot, rest = path.partition(".")
        return names.get(head, head) + dot + rest

    made = found.rewrite
    return replace(
        found, rewrite=(lambda row: made(_plainly(row))) if made else None, uses=frozenset(map(written, found.uses)),
        input=tuple(map(written, found.input)), output=written(found.output), meta=tuple(map(written, found.meta)),
        choices=tuple(map(written, found.choices)), choice_keys=written(found.choice_keys),
    )  # fmt: skip
