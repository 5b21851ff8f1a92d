"""LangChain: an example selector for few-shot prompt templates.

from iclkit.integrations.langchain import ExampleSelector

chosen = ExampleSelector("kept/", input_keys=["question"], output_key="answer")
prompt = FewShotPromptTemplate(example_selector=chosen, example_prompt=…, suffix="Q: {question}\\nA:",
                               input_variables=["question"])
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from iclkit.errors import UsageError
from iclkit.integrations._demonstrations import Columns, SelectorLike, as_chooser, choose_from, in_prompt_order
from iclkit.integrations._extras import require
from iclkit.records import Example
from iclkit.selectors import Kit

require("langchain", "langchain-core", "0.3")

from langchain_core.example_selectors import BaseExampleSelector  # noqa: E402

from iclkit.embed import Embedder, load_embedder  # noqa: E402


class ExampleSelector(BaseExampleSelector):
    """The demonstrations of an iclkit selector, in prompt order (the best last), as LangChain asks for them.

    ``selector``: a ``Chooser``, a fitted selector, or the folder of a saved one; ``k``: how many, as it was saved where
    None. ``input_keys``: the prompt's variables that are the query (a prompt is asked with all of them).
    ``output_key``: the name of the output in what is returned. The pool's own names where these are None.
    ``where_keys``: variables that are metadata which the demonstrations must share (``tenant``, ``language``).
    ``escape_braces``: set it for ``FewShotPromptTemplate``, which formats rendered demonstrations a second time, so
    that a brace in one would be taken for a variable; ``FewShotChatMessagePromptTemplate`` does not, and must have them
    as they are.
    """

    def __init__(
        self,
        selector: SelectorLike,
        k: int | None = None,
        *,
        input_keys: Sequence[str] | None = None,
        output_key: str | None = None,
        where_keys: Sequence[str] = (),
        escape_braces: bool = False,
    ) -> None:
        self.chooser, self.k, self.escape_braces = as_chooser(selector, k), k, escape_braces
        self.columns = Columns.of(self.chooser, input_keys, output_key, where_keys)
        self._adding = threading.Lock()

    @classmethod
    def from_examples(
        cls,
        examples: Sequence[Mapping[str, Any]],
        selector: str = "knn",
        k: int = 8,
        *,
        input_keys: Sequence[str],
        output_key: str,
        embedder: str | Embedder | None = None,
        where_keys: Sequence[str] = (),
        escape_braces: bool = False,
    ) -> ExampleSelector:
        """A selector by name over examples that are given here and kept in memory.

        ``embedder``: a name or an embedder, for selectors that need one.
        """
        if isinstance(input_keys, str):
            raise UsageError(f"input_keys is a list of names; write [{input_keys!r}]")
        columns = Columns(tuple(input_keys), output_key, len(input_keys) > 1, tuple(where_keys))
        kit = Kit(embedder=load_embedder(embedder) if isinstance(embedder, str) else embedder)
        chooser = choose_from(map(columns.example, examples), selector, kit, k)
        return cls(chooser, k, input_keys=input_keys, output_key=output_key, where_keys=where_keys,
                   escape_braces=escape_braces)  # fmt: skip

    def select_examples(self, input_variables: dict[str, Any]) -> list[dict[str, Any]]:
        """The demonstrations for the prompt's variables, the best last."""
        selection = self.chooser.select(self.columns.query(input_variables), self.k)
        return [self._as_dict(e) for e in in_prompt_order(self.chooser, selection)]

    def add_example(self, example: dict[str, Any]) -> str:
        """Add an example to the pool, fit the selector anew, and return the example's id."""
        with self._adding:
            (example_id,) = self.chooser.pool.add([self.columns.example(example)]).ids
            self.chooser.refit()
        return example_id

    def _as_dict(self, example: Example) -> dict[str, Any]:
        values = self.columns.values(example)
        if not self.escape_braces:
            return values
        return {k: v.replace("{", "{{").replace("}", "}}") if isinstance(v, str) else v for k, v in values.items()}
