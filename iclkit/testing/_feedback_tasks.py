"""Made-up tasks on which the useful demonstration is not the similar one, with LMs that say which it is.

A text is six everyday words of one topic, by which texts look alike, and one or two nonsense words, which are the forms
of a hidden feature. Forms of one feature have nothing in common, and no form stands in two texts of one topic as long
as topics last; so only feedback tells that a demonstration helps, and to learn it one has to learn which forms belong
together. Answers are hashes of texts and give nothing away. All is determined by the seed.
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import TypeVar

from iclkit.datasets import Card, Task
from iclkit.errors import UsageError
from iclkit.prompts import Template
from iclkit.records import Example, digest
from iclkit.testing._lm import ScriptedLM

TOPICS = tuple(
    words.split()
    for words in (
        "rose tulip hedge soil spade seed lawn compost daisy rake",
        "oven pan recipe flour knife salt whisk butter stew plate",
        "boat anchor quay sail tide crane harbour rope mast fisher",
        "pupil chalk lesson desk exam teacher school homework blackboard essay",
        "nurse ward patient bandage doctor pill surgeon clinic fever syringe",
        "train platform ticket signal conductor track railway carriage timetable tunnel",
        "stage actor curtain script balcony theatre costume rehearsal applause drama",
        "cow tractor barn hay hen fence sheep plough farmer goat",
        "goal referee striker penalty stadium keeper league pitch coach corner",
        "guitar drum chorus melody concert piano singer violin rhythm choir",
        "planet comet orbit telescope galaxy rocket lunar astronaut meteor satellite",
        "judge lawyer verdict jury court witness trial prison sentence plea",
    )
)
_SHOT = re.compile(r"Input: (?P<input>.*)\nLabel:(?P<output>.*)")
_LABELS = ("north", "south", "east", "west")
_ELSE = 1e-3  # what one wrong text gets of the probability that the gold answer leaves, where answers are not labels

T = TypeVar("T")
Feature = Mapping[str, str]
"""The value of a hidden feature that each of its forms stands for."""


class FeedbackLM(ScriptedLM, ABC):
    """An LM that knows what helps: the gold answer is as likely as the demonstrations in the prompt make it.

    It sees nothing but the prompt: an instruction, if any, then ``Input: …`` and ``Label: …`` lines, with a blank line
    between demonstrations and the query last. Wrong labels share what the gold answer leaves. Asked to generate, it
    gives the gold answer if that is more likely than not, else a wrong one. ValueError for a text of another look.
    """

    enough: float
    """The chance of the gold answer from which demonstrations are all that a query needs."""

    def __init__(self, name: str, labels: Sequence[str], seed: int, *facts: object) -> None:
        super().__init__(self._read, self._say, context_size=1 << 20, name=name)
        self.labels, self.seed = tuple(labels), seed
        self.fingerprint = f"{name}-{digest([[*self.labels], seed, *facts], 8)}"

    @abstractmethod
    def chance(self, query: str, shown: Sequence[Example], instruction: str = "") -> float:
        """Probability of the gold answer to an input behind demonstrations; their order does not matter."""

    def solved(self, query: str, shown: Sequence[Example], instruction: str = "") -> bool:
        """Whether the demonstrations are all that the query needs."""
        return self.chance(query, shown, instruction) >= self.enough

    def gold(self, text: str) -> str:
        """The answer to an input: one of the labels, or two made-up words."""
        return _answer(text, self.labels, self.seed)

    def _read(self, context: str, continuation: str) -> float:
        query, chance = self._judged(context)
        answer = continuation.strip()
        if answer == self.gold(query):
            return math.log(chance)
        return math.log((1 - chance) * (1 / (len(self.labels) - 1) if answer in self.labels else _ELSE))

    def _say(self, context: str) -> str:
        query, chance = self._judged(context)
        gold = self.gold(query)
        return f" {gold}" if chance > 0.5 else f" {next((x for x in self.labels if x != gold), 'no idea')}"

    def _judged(self, context: str) -> tuple[str, float]:
        *before, last = context.split("\n\n")
        asked, found = _SHOT.fullmatch(last), [_SHOT.fullmatch(block) for block in before]
        if asked is None or asked["output"].strip():
            raise ValueError(f"{self.name} reads prompts that end in 'Input: …' and an open 'Label:', not {last!r}")
        shown = [Example(f["input"], f["output"].strip()) for f in found if f]
        instruction = "\n\n".join(block for block, f in zip(before, found, strict=True) if not f)
        return asked["input"], self.chance(asked["input"], shown, instruction)


class HiddenModeLM(FeedbackLM):
    """A demonstration helps if it has the query's mode: .1 without one, .6 with one, .8, .9, … with more.

    features: the modes of forms under each instruction; a single feature goes with any instruction.
    """

    enough = 0.6

    def __init__(
        self, features: Mapping[str, Feature], labels: Sequence[str], seed: int, name: str = "mode-judge"
    ) -> None:
        super().__init__(name, labels, seed, features)
        self.features = features

    def mode(self, text: str, instruction: str = "") -> str:
        """The mode of a text under an instruction; ValueError for a text or an instruction of another task."""
        return _values(text, self._feature(instruction))[0]

    def helps(self, query: str, shot: Example, instruction: str = "") -> bool:
        """Whether a demonstration helps with a query."""
        return self.mode(query, instruction) == self.mode(shot.text, instruction)

    def chance(self, query: str, shown: Sequence[Example], instruction: str = "") -> float:
        """By the number of demonstrations that help."""
        helpful = len(self._helpful(query, shown, instruction))
        return 1 - 0.4 * 0.5 ** (helpful - 1) if helpful else 0.1

    def _helpful(self, query: str, shown: Sequence[Example], instruction: str) -> list[Example]:
        self.mode(query, instruction)  # a text of another task is refused without demonstrations, too
        return [shot for shot in shown if self.helps(query, shot, instruction)]

    def _feature(self, instruction: str) -> Feature:
        if len(self.features) == 1:
            return next(iter(self.features.values()))
        if instruction not in self.features:
            raise ValueError(f"{self.name} knows the instructions {[*self.features]}, not {instruction!r}")
        return self.features[instruction]


class _ShuffledJudge(HiddenModeLM):
    def __init__(self, judge: HiddenModeLM, seed: int) -> None:
        super().__init__(judge.features, judge.labels, judge.seed, f"shuffled-{judge.name}-{seed}")
        self._salt = seed

    def helps(self, query: str, shot: Example, instruction: str = "") -> bool:
        share = 1 / len({*self._feature(instruction).values()})
        return random.Random(digest([self._salt, query, shot.text, instruction])).random() < share


def shuffled_judge(judge: HiddenModeLM, seed: int = 0) -> HiddenModeLM:
    """The control of ``hidden_mode_task`` and ``conflicting_tasks``: feedback without a signal.

    As many demonstrations help, but which ones do is a hash of query and demonstration. ``mode`` still tells the truth;
    ``helps``, ``chance`` and ``solved`` do not. What learns such scores by heart finds texts by their rarest words, and
    so a form that two texts share: it ends a little above chance.
    """
    return _ShuffledJudge(judge, seed)


class PairLM(HiddenModeLM):
    """Two demonstrations of the query's mode are needed, one of each label; two of one label mislead.

    The gold answer, of two labels, has probability .2 with none of that mode, .6 with one of the first label, .55 with
    one of the second, .3 with several of one label, .95 with both. ``independent``: demonstrations add up as in
    ``HiddenModeLM``, and two are enough.
    """

    def __init__(self, feature: Feature, labels: Sequence[str], seed: int, independent: bool = False) -> None:
        super().__init__({"": feature}, labels, seed, "sum-judge" if independent else "pair-judge")
        self.independent = independent
        self.enough = 0.8 if independent else 0.95

    def chance(self, query: str, shown: Sequence[Example], instruction: str = "") -> float:
        """By the labels of the demonstrations that help."""
        if self.independent:
            return super().chance(query, shown, instruction)
        seen = [shot.output for shot in self._helpful(query, shown, instruction)]
        if len(seen) < 2:
            return 0.2 if not seen else 0.6 if seen[0] == self.labels[0] else 0.55
        return 0.3 if len({*seen}) == 1 else 0.95


class CoverageLM(FeedbackLM):
    """The demonstrations together must have every attribute of the query: .1 for none, .2 for a part, .9 for all."""

    enough = 0.9

    def __init__(self, feature: Feature, labels: Sequence[str], seed: int) -> None:
        super().__init__("cover-judge", labels, seed, feature)
        self.feature = feature

    def attributes(self, text: str) -> frozenset[str]:
        """The attributes of a text, one or two; ValueError for a text of another task."""
        return frozenset(_values(text, self.feature))

    def chance(self, query: str, shown: Sequence[Example], instruction: str = "") -> float:  # noqa: ARG002
        """By how many of the query's attributes are shown."""
        asked = self.attributes(query)
        covered = asked & frozenset().union(*(self.attributes(shot.text) for shot in shown))
        return 0.9 if covered == asked else 0.2 if covered else 0.1


def hidden_mode_task(
    train: int = 240, test: int = 60, seed: int = 0, *, modes: int = 6, forms: int = 5, kind: str = "classification"
) -> tuple[Task, HiddenModeLM]:
    """Texts with one mode each; demonstrations of the query's mode help (EPR, UDR, LLM-R).

    kind: classification (four labels) or generation (two made-up words). A random demonstration helps with
    probability 1 / modes. UsageError unless every form comes up in train, for which train = modes * forms suffices.
    """
    writer, labels = _Writer("mode", seed), _LABELS if kind == "classification" else ()
    families = writer.families(modes, forms)
    texts = [writer.write(family) for family in writer.rounds(families, train + test)]
    task = _task(f"hidden-mode-{kind}", kind, texts, train, labels, seed, families)
    return task, HiddenModeLM({"": _feature(families, "mode")}, labels, seed)


def conflicting_tasks(
    train: int = 160, test: int = 40, seed: int = 0, *, modes: int = 8, forms: int = 3
) -> tuple[tuple[Task, Task], HiddenModeLM]:
    """Two tasks over the same texts, and the judge of both: only the instruction tells which of two features counts.

    Every text has a mode of each feature. A task's instruction stands in its template and in its card's description.
    No train row has both modes of a test row, so whoever does not know the task, and shows the same for both, is right
    at most half of the time over the two. train and test are rows of each task.
    UsageError unless every form comes up in train.
    """
    writer = _Writer("conflict", seed)
    sides = {f"Say where by {name}.": writer.families(modes, forms) for name in ("hue", "tone")}
    partners = writer.rounds(range(modes), modes)
    kept = [(a, partners[(a + step) % modes]) for a in range(modes) for step in range(max(1, modes // 3))]
    free = [pair for pair in product(range(modes), repeat=2) if pair not in kept]
    drawn = [*writer.rounds(free, train), *writer.rounds(kept, test)]
    texts = [writer.write(*(side[mode] for side, mode in zip(sides.values(), pair, strict=True))) for pair in drawn]
    families = [family for side in sides.values() for family in side]
    hue, tone = (
        _task(f"conflicting-{name}", "classification", texts, train, _LABELS, seed, families, instruction)
        for name, instruction in zip(("hue", "tone"), sides, strict=True)
    )
    features = {instruction: _feature(side, "mode") for instruction, side in sides.items()}
    return (hue, tone), HiddenModeLM(features, _LABELS, seed, "conflict-judge")


def pair_task(
    train: int = 240, test: int = 60, seed: int = 0, *, modes: int = 6, forms: int = 5, independent: bool = False
) -> tuple[Task, PairLM]:
    """Texts with one mode each and one of two labels; a query needs a demonstration of each label in its mode (Se²).

    Alone, the first label helps a little more, so whoever ranks demonstrations one by one shows it twice, which
    misleads. Which label a demonstration has is seen in its output only: encode documents with their outputs.
    ``independent``: the same texts, and demonstrations add up. UsageError unless every form comes up in train.
    """
    writer, labels = _Writer("pair", seed), ("upper", "lower")
    families = writer.families(modes, forms)
    texts = [writer.write(family) for family in writer.rounds(families, train + test)]
    name = "pair-independent" if independent else "pair"
    task = _task(name, "classification", texts, train, labels, seed, families)
    return task, PairLM(_feature(families, "mode"), labels, seed, independent)


def redundancy_task(train: int = 240, test: int = 60, seed: int = 0, *, forms: int = 3) -> tuple[Task, CoverageLM]:
    """Queries with two attributes, which two demonstrations have to cover between them (CEIL).

    Half of train are texts with one attribute, each beside a near-duplicate that differs in one word; the other half,
    and test, have two. No two texts have the same two attributes, so no demonstration covers a test query alone, and
    two that are near each other cover the same part of it. The number of attributes follows from the number of rows.
    UsageError unless train is a multiple of 4 and every form comes up in it.
    """
    if train % 4:
        raise UsageError(f"train is {train}; give a multiple of 4: half of the rows are pairs of near-duplicates")
    writer, doubles = _Writer("redundancy", seed), train // 2
    attributes = next(n for n in range(4, train + test + 4) if n * (n - 1) // 2 >= doubles + test)
    families = writer.families(attributes, forms)
    texts = []
    for family in writer.rounds(families, train // 4):
        texts.append(writer.write(family))
        texts.append(writer.sibling(texts[-1]))
    texts += [writer.write(*pair) for pair in writer.rounds([*combinations(families, 2)], doubles + test)]
    shown = writer.rounds(texts[:train], train)
    task = _task("redundancy", "classification", [*shown, *texts[train:]], train, _LABELS, seed, families)
    return task, CoverageLM(_feature(families, "attribute"), _LABELS, seed)


class _Writer:
    """Coins forms and writes texts with them: each form about as often as its like, and in a topic of its own."""

    def __init__(self, name: str, seed: int) -> None:
        self._rng = random.Random(f"{name} {seed}")
        self._coined, self._texts = set[str](), set[str]()
        self._used, self._met = Counter[str](), Counter[tuple[int, str]]()

    def families(self, count: int, forms: int) -> list[list[str]]:
        """New words of three syllables, ``forms`` for each of ``count`` values of a feature."""
        return [[self._coin() for _ in range(forms)] for _ in range(count)]

    def rounds(self, things: Iterable[T], count: int) -> list[T]:
        """``count`` things: all of them in random order, then all again, and so on."""
        all_, drawn = [*things], list[T]()
        while len(drawn) < count:
            drawn += self._rng.sample(all_, len(all_))
        return drawn[:count]

    def write(self, *families: Sequence[str]) -> str:
        """A new text with a form of each family at random places."""
        forms = [min(self._rng.sample(f, len(f)), key=lambda form: self._used[form]) for f in families]
        met = [sum(self._met[topic, form] for form in forms) for topic in range(len(TOPICS))]
        topic = self._rng.choice([t for t, n in enumerate(met) if n == min(met)])
        self._used.update(forms)
        self._met.update((topic, form) for form in forms)
        while True:
            words = self._rng.sample(TOPICS[topic], 6)
            for form in forms:
                words.insert(self._rng.randrange(len(words) + 1), form)
            if (text := " ".join(words)) not in self._texts:
                self._texts.add(text)
                return text

    def sibling(self, text: str) -> str:
        """The text with one topic word replaced by another of its topic."""
        words = text.split()
        places = [n for n, word in enumerate(words) if word not in self._coined]
        topic = next(t for t in TOPICS if all(words[n] in t for n in places))
        place = self._rng.choice(places)
        words[place] = self._rng.choice([word for word in topic if word not in words])
        self._texts.add(" ".join(words))
        return " ".join(words)

    def _coin(self) -> str:
        while (word := _syllables(self._rng, 3)) in self._coined or any(word in topic for topic in TOPICS):
            pass
        self._coined.add(word)
        return word


def _syllables(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(count))


def _feature(families: Sequence[Sequence[str]], name: str) -> dict[str, str]:
    return {form: f"{name} {n}" for n, family in enumerate(families) for form in family}


def _values(text: str, feature: Feature) -> list[str]:
    found = [feature[word] for word in text.split() if word in feature]
    if not found:
        raise ValueError(f"{text!r} is not a text of this task: no word of it is a form of the hidden feature")
    return found


def _answer(text: str, labels: Sequence[str], seed: int) -> str:
    rng = random.Random(digest(["answer", seed, text]))
    return rng.choice(labels) if labels else f"{_syllables(rng, 2)} {_syllables(rng, 2)}"


def _task(
    name: str,
    kind: str,
    texts: Sequence[str],
    train: int,
    labels: Sequence[str],
    seed: int,
    families: Sequence[Sequence[str]],
    instruction: str = "",
) -> Task:
    met = {word for text in texts[:train] for word in text.split()}
    if missing := [form for family in families for form in family if form not in met]:
        raise UsageError(
            f"{name}: {len(missing)} forms of the hidden feature do not come up in {train} train rows, so nothing can "
            f"be learnt of them; give more train rows, or fewer modes or forms"
        )
    rows = [Example(text, _answer(text, labels, seed), task=name) for text in texts]
    return Task(
        name=name,
        kind=kind,
        train=tuple(rows[:train]),
        test=tuple(rows[train:]),
        template=Template("Input: {input}\nLabel: {output}", instruction=instruction, stop=("\n",)),
        labels=tuple(labels),
        metric="accuracy" if labels else "exact_match",
        card=Card(description=instruction),
        max_answer_tokens=8,
    )
