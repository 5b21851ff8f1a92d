"""From a prediction to a row: how good an answer is, against the right one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from iclkit.errors import DataError, IclkitError
from iclkit.eval._metrics import Metric
from iclkit.predictors import Prediction
from iclkit.records import Row


@dataclass(frozen=True, slots=True)
class Judge:
    """A metric over the predictions of one predictor."""

    metric: Metric
    calibrated: bool

    def row(self, prediction: Prediction, gold: str, place: str = "") -> Row:
        """The row of one query. One that cannot be answered or judged is a row with a ``failure``.

        ``place``: where the query was read, for messages.
        """
        selection, prompt = prediction.selection, prediction.prompt
        metrics, failure = self._judged(prediction, gold, place)
        return Row(
            query_id=prediction.query_id,
            gold=gold,
            output=prediction.output,
            metrics=metrics,
            picks=tuple((p.example_id, p.score) for p in selection.picks) if selection else (),
            shown=prompt.shown if prompt else (),
            dropped=prompt.dropped if prompt else (),
            prompt_hash=prompt.hash if prompt else "",
            prompt_tokens=prompt.tokens if prompt else 0,
            label_logprobs=prediction.logprobs,
            notes=(*(selection.notes if selection else ()), *prediction.notes),
            greedy=prediction.greedy,
            failure=failure,
            label_tokens=prediction.tokens,
        )

    def again(self, row: Row, prediction: Prediction, place: str = "") -> Row:
        """A row whose answer has changed with a look at all of them."""
        metrics, failure = self._judged(prediction, row.gold, place)
        return replace(row, output=prediction.output, metrics=metrics, failure=failure)

    def _judged(self, prediction: Prediction, gold: str, place: str) -> tuple[dict[str, float], str]:
        """Values by metric, and why there are none."""
        where = f"{place}: " if place else ""
        if prediction.failure:
            return {}, where + prediction.failure
        try:
            return self._values(prediction, gold), ""
        except DataError as error:
            return {}, f"{where}{error}"

    def _values(self, prediction: Prediction, gold: str) -> dict[str, float]:
        values = {}
        if self.metric.judge:
            values[self.metric.name] = self._value(prediction.output, gold)
            if self.calibrated:
                values[f"{self.metric.name}_raw"] = self._value(prediction.raw, gold)
        if gold in prediction.shares:
            values["gold_logprob"] = prediction.shares[gold]
        return values

    def _value(self, output: str, gold: str) -> float:
        """What the metric gives. DataError for anything but a finite number, and for whatever a metric raises."""
        name = self.metric.name
        assert self.metric.judge is not None
        try:
            value = self.metric.judge(output, gold)
            finite = math.isfinite(value)
        except IclkitError:
            raise
        except Exception as error:  # metrics are plug-ins too: what one raises costs the row it was raised for
            raise DataError(f"metric {name!r} raised {type(error).__name__}: {error}") from error
        if not finite:
            raise DataError(f"metric {name!r} gave {value!r} for an answer; a finite number was expected")
        return value


def prediction_of(row: Row) -> Prediction:
    """What a stored row says of its prediction, for a look at all of them."""
    return Prediction(
        row.query_id,
        row.output,
        logprobs=row.label_logprobs,
        greedy=row.greedy,
        tokens=row.label_tokens,
        notes=row.notes,
        failure="" if row.label_logprobs else row.failure,  # else it was answered, and the metric failed
    )
