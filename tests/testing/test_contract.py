"""The contract must catch what it is for: each broken selector below fails at least the test that names its fault."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from iclkit.errors import UsageError
from iclkit.selectors import BaseSelector, Choice, Kit, Needs
from iclkit.testing import SelectorContract


@dataclass
class Base(BaseSelector):
    """the first rows"""

    name: ClassVar[str] = "base"
    needs: ClassVar[Needs] = Needs(whole_pool=True)

    def choose(self, candidates, k):
        rows = candidates.rows()[:k]
        return Choice(rows, np.zeros(len(rows)))


class ShowsExcluded(Base):
    def choose(self, candidates, k):
        rows = self.pool_.rows[:k]
        return Choice(rows, np.zeros(len(rows)))


class Repeats(Base):
    def choose(self, candidates, k):
        rows = candidates.rows()[:1]
        return Choice(np.repeat(rows, k if len(rows) else 0), np.zeros(k if len(rows) else 0))


class TooFew(Base):
    def choose(self, candidates, k):
        rows = super().choose(candidates, k).rows[:-1]
        return Choice(rows, np.zeros(len(rows)))


class NotANumber(Base):
    def choose(self, candidates, k):
        choice = super().choose(candidates, k)
        return Choice(choice.rows, choice.scores + np.nan)


class DependsOnTheBatch(Base):
    def choose_many(self, batch, k):
        rolled = [np.roll(candidates.rows(), -len(batch))[:k] for candidates in batch]
        return [Choice(rows, np.zeros(len(rows))) for rows in rolled]


class GlobalRandom(Base):
    def choose(self, candidates, k):
        rows = np.random.permutation(candidates.rows())[:k]
        return Choice(rows, np.zeros(len(rows)))


class RowOrder(Base):
    def choose(self, candidates, k):
        rows = super().choose(candidates, k).rows
        return Choice(rows, -np.arange(len(rows), dtype=float))


class TakesHandlesForPositions(Base):
    def choose(self, candidates, k):
        rows = candidates.rows()[:k]
        return Choice(rows, np.array([len(self.pool_.examples[row % len(self.pool_)].text) for row in rows], float))


class DrawsInSecret(Base):
    def choose(self, candidates, k):
        rows = np.random.default_rng(self.kit_.seed).permutation(candidates.rows())[:k]
        return Choice(rows, np.zeros(len(rows)))


class AsksForTheWholePool(Base):
    needs: ClassVar[Needs] = Needs()


class HasNoStrategy(BaseSelector):
    name: ClassVar[str] = "empty"


def run(selector: Base, test: str) -> None:
    contract = SelectorContract()
    material = {"selector": selector, "kit": Kit(seed=1)}
    for name in ("examples", "queries"):
        material[name] = inspect.unwrap(getattr(SelectorContract, name)._get_wrapped_function())(contract)
    method = getattr(contract, test)
    if "fitted" in inspect.signature(method).parameters:
        material["fitted"] = selector.fit(contract.make_pool(material["examples"]).view(), material["kit"])
    method(**{name: material[name] for name in inspect.signature(method).parameters})


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (ShowsExcluded, "test_never_shows_an_excluded_example"),
        (Repeats, "test_gives_k_picks_without_repeats_and_ranks_them"),
        (TooFew, "test_gives_k_picks_without_repeats_and_ranks_them"),
        (TooFew, "test_k_beyond_the_pool_gives_what_there_is_and_says_so"),
        (NotANumber, "test_gives_k_picks_without_repeats_and_ranks_them"),
        (DependsOnTheBatch, "test_many_queries_are_answered_as_one_by_one"),
        (GlobalRandom, "test_the_same_seed_gives_the_same_picks"),
        (GlobalRandom, "test_global_random_state_is_left_alone"),
        (RowOrder, "test_the_order_of_the_pool_does_not_matter"),
        (TakesHandlesForPositions, "test_rows_are_handles_and_may_have_holes"),
        (DrawsInSecret, "test_a_seed_changes_nothing_unless_it_says_so"),
    ],
)
def test_a_broken_selector_fails(broken, test):
    with pytest.raises(AssertionError):
        run(broken(), test)


def test_all_candidates_are_given_only_to_a_selector_that_declares_it():
    with pytest.raises(UsageError, match="whole_pool=True"):
        run(AsksForTheWholePool(), "test_many_queries_are_answered_as_one_by_one")


def test_a_selector_without_a_strategy_is_told_what_to_define():
    with pytest.raises(TypeError, match="HasNoStrategy has neither choose nor choose_many"):
        run(HasNoStrategy(), "test_many_queries_are_answered_as_one_by_one")


@pytest.mark.parametrize("test", [n for n in vars(SelectorContract) if n.startswith("test_many") or "excluded" in n])
def test_a_sound_selector_passes_by_the_same_road(test):
    run(Base(), test)
