"""No labeled data: the model writes inputs, answers them itself, and sums up how (Auto-ICL).

After "Auto-ICL: In-Context Learning without Human Supervision". The generating mode writes inputs like the query and
answers them (``auto_icl``); the retrieving mode answers inputs one has (``label_inputs``); ``plan`` is the summary that
both put before the query. Where there are labels, an input can be written for each, and is right by construction
(``write_for_labels``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from iclkit.augment._result import AugmentResult, Provenance, Rejected, SeenInputs, no_answer
from iclkit.errors import UsageError
from iclkit.lm import LM, GenerateRequest, ask_each
from iclkit.prompts import Template, answer_stops, assemble
from iclkit.records import Example, Fields, Query, fold_text, input_text

_ITEM = re.compile(r"\s*(?:\d+\s*[.):．）：、]|[-*•・])\s*(.*)")
_ALIKE = 0.9  # ratio of difflib from which a new input repeats the query
_NEW_INPUT_TOKENS = 24  # room for a written input beyond twice the length of the query


def read_list(text: str) -> tuple[list[str], list[str]]:
    """The items of a numbered or dashed list, one a line, and the lines that are none.

    >>> read_list("1. a\\n\\nSure:\\n2) b")
    (['a', 'b'], ['Sure:'])
    """
    items, others = list[str](), list[str]()
    for line in filter(str.strip, text.split("\n")):
        found = _ITEM.fullmatch(line)
        (items if found and found.group(1).strip() else others).append((found.group(1) if found else line).strip())
    return items, others


def auto_icl(
    lm: LM,
    template: Template,
    queries: Sequence[Query],
    *,
    questions: int = 4,
    labels: Sequence[str] = (),
    cue: str = "",
    votes: int = 1,
    agreement: float = 0.6,
    temperature: float = 0.0,
    max_tokens: int = 128,
    chat: bool = False,
    seed: int = 0,
    task: str = "",
) -> AugmentResult:
    """For each query the model writes ``questions`` new inputs of its kind, then answers each as ``label_inputs`` does.

    An example's ``meta["generated_for"]`` is the id of its query. Inputs that repeat the query or each other are
    rejected. ``chat`` asks for new inputs in the model's own chat template. 1 + questions * votes calls per query at
    most (votes = 1 with labels), in two rounds of the LM. UsageError for inputs with named fields.
    """
    _single_text(template)
    writer = Provenance("auto-icl", lm, seed)
    if not questions:
        return AugmentResult("auto-icl")
    contexts = [writer.request(_ask_for_inputs(template, q, questions), "1.", chat) for q in queries]
    requests = [
        GenerateRequest(
            c, questions * (2 * lm.count_tokens(q.text) + _NEW_INPUT_TOKENS), temperature=temperature, seed=seed
        )
        for q, c in zip(queries, contexts, strict=True)
    ]
    wanted, rejected = list[tuple[Fields, str, str]](), list[Rejected]()
    for query, context, reply in zip(queries, contexts, writer.generate(requests), strict=True):
        if not reply.text.strip():
            rejected.append(no_answer(reply, query.text))
            continue
        items, others = read_list(reply.text if chat else "1." + reply.text)
        rejected += [Rejected("not an item of a list", line) for line in others]
        rejected += [Rejected("more than was asked for", item) for item in items[questions:]]
        fresh = SeenInputs()
        for item in items[:questions]:
            if _is_repetition(item, query.text):
                rejected.append(Rejected("repeats the query", item))
            elif not fresh.add(item):
                rejected.append(Rejected("repeats another", item))
            else:
                wanted.append((item, query.id, context))
    result = _answered(writer, template, wanted, labels, cue, votes, agreement, max_tokens, task)
    return replace(result, rejected=(*rejected, *result.rejected), calls=result.calls + len(requests))


def label_inputs(
    lm: LM,
    template: Template,
    inputs: Sequence[Fields],
    *,
    labels: Sequence[str] = (),
    cue: str = "",
    votes: int = 1,
    agreement: float = 0.6,
    max_tokens: int = 128,
    seed: int = 0,
    task: str = "",
) -> AugmentResult:
    """The model's own zero-shot answers to unlabeled inputs, as examples.

    With ``labels`` the likeliest is taken. Without, an answer is generated after ``cue`` (e.g. "Let's think step by
    step."), which becomes part of the output; with ``votes`` > 1 it is sampled that often, and the most frequent (the
    first of equally frequent ones) is kept when its share of the votes reaches ``agreement``. An input to which the
    model writes nothing, or which it refuses, is rejected as "no answer".
    """
    wanted = [(value, "", "") for value in inputs]
    return _answered(Provenance("answer", lm, seed), template, wanted, labels, cue, votes, agreement, max_tokens, task)


def _answered(
    writer: Provenance,
    template: Template,
    wanted: Sequence[tuple[Fields, str, str]],
    labels: Sequence[str],
    cue: str,
    votes: int,
    agreement: float,
    max_tokens: int,
    task: str,
) -> AugmentResult:
    """Examples out of (input, id of the query it was written for, context it was written after)."""
    if votes < 1 or not 0 <= agreement <= 1:
        raise UsageError(f"votes is {votes}, agreement {agreement}; give 1 or more, and a share from 0 to 1")
    lm, choices = writer.lm, tuple(dict.fromkeys(labels))
    votes = 1 if choices else votes
    cue = "" if choices else cue
    stops = answer_stops(template, choices, one_line=False)
    requests, prompts = list[GenerateRequest](), list[str]()
    for value, _, _ in wanted:
        prompt = assemble(
            template,
            Query(value),
            [],
            render_chat=lm.render_chat if template.chat else None,
            **writer.settings(max_tokens),
        )
        text = prompt.text + (prompt.answer_prefix + cue if cue else "")
        options = tuple(prompt.answer_prefix + template.answer(c) for c in choices)
        for vote in range(votes):
            sampled = 1.0 if votes > 1 else 0.0
            requests.append(GenerateRequest(text, max_tokens, stops, options, sampled, writer.seed + vote))
        prompts.append(text)
    replies = iter(writer.generate(requests))
    examples, rejected = list[Example](), list[Rejected]()
    for (value, query_id, context), prompt_text in zip(wanted, prompts, strict=True):
        answers = [next(replies) for _ in range(votes)]
        counts = Counter(text for a in answers if (text := a.text.strip()))
        if not counts:
            rejected.append(no_answer(answers[0], input_text(value)))
            continue
        answer, count = counts.most_common(1)[0]
        if all(a.finish == "length" for a in answers if a.text.strip() == answer):
            rejected.append(Rejected("cut off", f"{input_text(value)}\n{answer}"))
        elif count / votes < agreement:
            rejected.append(Rejected("answers do not agree", f"{input_text(value)}\n{answer}"))
        else:
            more = {"for": query_id} if query_id else {}
            output = f"{cue} {answer}" if cue else answer
            examples.append(writer.stamp(Example(value, output, task), context or prompt_text, **more))
    return AugmentResult(writer.method, tuple(examples), tuple(rejected), len(requests))


def write_for_labels(
    lm: LM,
    template: Template,
    labels: Sequence[str],
    *,
    per_label: int = 2,
    temperature: float = 0.8,
    max_tokens: int = 40,
    seed: int = 0,
    task: str = "",
) -> AugmentResult:
    """The model writes ``per_label`` inputs for every label, which it is given first: ``Label: x`` then ``Text:``.

    One line each; repeats are rejected. labels * per_label calls in one round. UsageError for named fields.
    """
    head, words = _single_text(template)
    writer = Provenance("labels", lm, seed)
    lead = f"{template.instruction}{template.separator}" if template.instruction else ""
    drawn = [(label, n) for label in labels for n in range(per_label)]
    contexts = [f"{lead}{words}{label}\n{head}".rstrip(" \t") for label, _ in drawn]
    requests = [
        GenerateRequest(c, max_tokens, ("\n",), temperature=temperature, seed=seed + n)
        for c, (_, n) in zip(contexts, drawn, strict=True)
    ]
    examples, rejected, fresh = list[Example](), list[Rejected](), SeenInputs()
    for (label, _), context, reply in zip(drawn, contexts, writer.generate(requests), strict=True):
        text = reply.text.strip()
        if not text:
            rejected.append(no_answer(reply, label))
        elif reply.finish == "length":
            rejected.append(Rejected("cut off", text))
        elif not fresh.add(text):
            rejected.append(Rejected("repeats another", text))
        else:
            examples.append(writer.stamp(Example(text, label, task), context))
    return AugmentResult("labels", tuple(examples), tuple(rejected), len(requests))


def plan(lm: LM, template: Template, examples: Sequence[Example], *, max_tokens: int = 128) -> Template:
    """The template with a plan at the end of its instruction, which the model sums up from solved examples.

    One call; greedy. The template is returned as it is when there are no examples, or the model writes nothing or
    refuses the prompt.
    """
    if not examples:
        return template
    solved = template.behind_demos.join(map(template.render_demo, examples))
    context = f"{solved}\n\nSum up in a few steps how such inputs are solved in general.\nPlan:"
    answers, _ = ask_each(lm.generate, [GenerateRequest(context, max_tokens, ("\n\n",))])
    text = answers[0].text.strip() if answers else ""
    instruction = "\n\n".join(t for t in (template.instruction, f"Plan: {text}") if t)
    return replace(template, instruction=instruction) if text else template


def _ask_for_inputs(template: Template, query: Query, count: int) -> str:
    lead = f"{template.instruction}\n\n" if template.instruction else ""
    kind = "1 new input" if count == 1 else f"{count} new inputs"
    return (
        f"{lead}Here is an input:\n{query.text}\n\n"
        f"Write {kind} of the same kind and structure, in a numbered list, one on each line."
    )


def _is_repetition(text: str, query: str) -> bool:
    ours, theirs = fold_text(text), fold_text(query)
    return ours == theirs or SequenceMatcher(None, ours, theirs).ratio() >= _ALIKE


def _single_text(template: Template) -> tuple[str, str]:
    """The words before the input and those before the answer. UsageError unless the input is one text."""
    fields = [f for f in template.fields if f not in ("output", "letter")]
    if fields != ["input"]:
        raise UsageError(f"a model writes inputs that are one text, {{input}}; the template has {', '.join(fields)}")
    head, _, rest = template.demo.partition("{input}")
    return _unescaped(head), _unescaped(rest.partition("{output}")[0].lstrip())


def _unescaped(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
