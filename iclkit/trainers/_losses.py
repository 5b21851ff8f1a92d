"""What trained retrievers minimise: pure functions of similarities, without models, files or settings.

Shapes: b queries in a batch, m documents for each of them, c columns of scores, d dimensions. ``similarities`` puts the
documents of all queries side by side, so that document n of query i is column ``i * m + n``; where a loss needs a
positive and is not told which, it is the first document of the query's own block. Scores are inner products; a caller
that wants a temperature divides by it. Every loss is a scalar in nats, differentiable in its scores.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

RANK_LOSSES = ("paper", "lambda-mrr")
_SINGULAR = 1e-6  # smallest eigenvalue of a set that counts as one without repeats; float32 cosines are off by 1e-7
_TIED = 1e-6  # scores of subsets no further apart than this are not blown up to fill [0, 1]


def similarities(queries: Tensor, documents: Tensor) -> Tensor:
    """(b, b m) inner products of queries (b, d) with the documents (b, m, d) of the whole batch."""
    return queries @ documents.flatten(0, 1).T


def own_candidates(scores: Tensor) -> Tensor:
    """(b, m): each query's scores with its own documents, out of (b, b m). ValueError unless b divides the columns."""
    first = _first_of_block(scores)
    return scores.gather(1, first[:, None] + torch.arange(scores.shape[1] // len(scores), device=scores.device))


def false_negatives(documents: Sequence[Sequence[int]], repeats: Sequence[Collection[int]]) -> Tensor:
    """(b, b m) bool: which documents of a batch are no negatives for which row.

    These are the row's own positive, met again in another row's block, and items that repeat its query. documents
    (b, m): item numbers, each row's positive first; repeats: for each row the items that repeat its query. A row's own
    block is never masked.

    >>> false_negatives([(5, 6), (6, 5)], [(), (5,)]).int().tolist()
    [[0, 0, 0, 1], [1, 1, 0, 0]]
    """
    items = torch.tensor([[*row] for row in documents])
    mask = torch.stack(
        [torch.isin(items, torch.tensor([row[0], *same])) for row, same in zip(documents, repeats, strict=True)]
    )  # (b, b, m)
    mask[torch.arange(len(items)), torch.arange(len(items))] = False
    return mask.flatten(1)


def info_nce(
    scores: Tensor, positive: Tensor | None = None, mask: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """The positive against everything else in the batch (EPR, Rubin et al., NAACL 2022; also Se²'s loss).

    scores (b, c). positive (b,): the column of each row's positive; by default the first of its own block. mask (b, c)
    bool: columns to leave out of the row's denominator (``false_negatives``); the positive's stays in any case.
    Mean over rows of -log softmax, each times its weight where ``weights`` (b,) are given.
    >>> s = torch.tensor([[2., 1., 0., -1.], [.5, 0., 1.5, 1.]])
    >>> round(info_nce(s).item(), 6)
    0.613764
    """
    if positive is None:
        positive = _first_of_block(scores)
    if mask is not None:
        others = torch.ones_like(mask).scatter(1, positive[:, None], False)
        scores = scores.masked_fill(mask & others, -torch.inf)
    if weights is None:
        return F.cross_entropy(scores, positive)
    return (weights * F.cross_entropy(scores, positive, reduction="none")).mean()


def udr_rank(scores: Tensor, variant: str = "paper", ranks: Tensor | None = None) -> Tensor:
    """Keep documents in the LM's order (UDR, Li et al., ACL 2023).

    scores (b, l): a query's list of documents. ranks (l,) or (b, l): the LM's ranks, 1 = best, equal for ties, between
    which there is no preference; by default the columns are in the LM's order without ties. Over the pairs in which
    the LM prefers i to j, softplus(score j - score i) weighted by

    - ``paper``: 1/rank i - 1/rank j; summed over a query's pairs, mean over queries;
    - ``lambda-mrr`` (the released code): the difference of 1/position in the model's present order, which is not
      differentiated; mean over all pairs of the batch; score differences cut off at ±50.

    0 where the LM prefers nothing to anything. ValueError on another variant.
    """
    if variant not in RANK_LOSSES:
        raise ValueError(f"no rank loss {variant!r}; use one of {', '.join(RANK_LOSSES)}")
    if ranks is None:
        ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    ranks = ranks.to(scores).expand_as(scores)
    behind = scores[:, None, :] - scores[:, :, None]  # (b, i, j): by how much j is ahead of i
    if variant == "paper":
        weight = (1 / ranks[:, :, None] - 1 / ranks[:, None, :]).clamp(min=0)
        return (weight * F.softplus(behind)).sum() / len(scores)
    preferred = ranks[:, :, None] < ranks[:, None, :]
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    gain = 1 / (order.argsort(dim=1) + 1).to(scores)
    weight = (gain[:, :, None] - gain[:, None, :]).abs() * preferred
    return (weight * F.softplus(behind.clamp(-50, 50))).sum() / preferred.sum().clamp(min=1)


def udr_loss(
    scores: Tensor,
    ranks: Tensor | None = None,
    *,
    variant: str = "paper",
    weight: float = 0.8,
    mask: Tensor | None = None,
) -> Tensor:
    """``weight`` of the rank loss on each query's own list, the rest of InfoNCE over the batch (UDR).

    scores (b, b l): the lists of all queries, each best first by the LM. ranks, variant: as in ``udr_rank``. mask
    (b, b l): as in ``info_nce``; documents of the query's own list that tie with its first are left out as well.
    The released code has 4 and 1 for .8 and .2: five times this.
    """
    own = own_candidates(scores)
    if ranks is not None:
        ranks = ranks.to(scores).expand_as(own)
        ties = torch.zeros_like(scores, dtype=torch.bool)
        at = _first_of_block(scores)[:, None] + torch.arange(own.shape[1], device=scores.device)
        ties.scatter_(1, at, ranks == ranks[:, :1])
        mask = ties if mask is None else mask | ties
    return weight * udr_rank(own, variant, ranks) + (1 - weight) * info_nce(scores, mask=mask)


def reward_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of the positive, column 0 of (b, 1 + n), against the query's own n negatives.

    What LLM-R's reward model minimises (Wang et al., EACL 2024); ln(1 + n) while it knows nothing.
    >>> round(reward_loss(torch.zeros(3, 8)).item(), 4)
    2.0794
    """
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def distill(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student), mean over rows (LLM-R).

    Both (b, g): a query's scores with a group of documents; the student's already divided by the temperature, the
    teacher's without one. No gradient reaches the teacher. A teacher's -inf is a document of probability 0.
    >>> cosines, reward = torch.tensor([[.8, .75, .6, .9]]), torch.tensor([[2., .5, -1., 0.]])
    >>> round(distill(cosines / .1, reward).item(), 5)
    0.67073
    """
    return F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")


def full_contrastive(queries: Tensor, documents: Tensor, tau: float = 0.01, mask: Tensor | None = None) -> Tensor:
    """InfoNCE against documents, other queries and other positives (LLM-R's four blocks of scores).

    queries (b, d), documents (b, m, d), unit rows; each query's first document is its positive p_i. Row i holds q_i
    with all documents, p_i with the other q_j, q_i with the other q_j, and p_i with the other p_j, all over ``tau``.
    mask (b, b m): as in ``info_nce``; a p_j that is no negative for q_i makes no negatives of the two pairs elsewhere.
    With one query this is InfoNCE over its own documents.
    """
    if tau <= 0:
        raise ValueError(f"tau is {tau}; give more than 0")
    m, positives = documents.shape[1], documents[:, 0]
    crossed = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    left_out = [torch.zeros_like(crossed).repeat(1, m), crossed, crossed, crossed]
    if mask is not None:
        shared = mask[:, ::m]  # (i, j): p_j is no negative for q_i
        both = crossed | shared | shared.T
        left_out = [mask, crossed | shared.T, both, both]
    blocks = [similarities(queries, documents), positives @ queries.T, queries @ queries.T, positives @ positives.T]
    return info_nce(torch.cat(blocks, 1) / tau, _first_of_block(blocks[0]), torch.cat(left_out, 1))


def llm_r_loss(
    queries: Tensor,
    documents: Tensor,
    teacher: Tensor,
    *,
    tau: float = 0.01,
    alpha: float = 0.2,
    mask: Tensor | None = None,
) -> Tensor:
    """Distillation of the reward model's opinion plus ``alpha`` of the contrastive loss (LLM-R's retriever).

    queries (b, d), documents (b, m, d), unit rows, positives first; teacher (b, m): reward logits of each query's own
    documents; tau divides the cosines in both terms; mask (b, b m): as in ``full_contrastive``.
    """
    own = (queries[:, None] * documents).sum(-1)
    return distill(own / tau, teacher) + alpha * full_contrastive(queries, documents, tau, mask)


def dpp_parts(query: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """(relevance (n,), similarity (n, n)) of a query (d,) and items (n, d), unit rows: cosines moved into [0, 1].

    The similarity of items is positive semi-definite: half of a Gram matrix plus half of all ones.
    """
    return (1 + items @ query) / 2, (1 + items @ items.T) / 2


def dpp_scores(relevance: Tensor, similarity: Tensor, subsets: Tensor, trade_off: float) -> Tensor:
    """(M,) log-determinants of a DPP that weighs relevance against volume (CEIL, Ye et al., ICML 2023).

    relevance (n,), similarity (n, n) of ``dpp_parts``; subsets (M, s) of row numbers. The score of a subset is
    sum(relevance) / trade_off + log det(similarity among its items), the log-determinant of the kernel
    exp(r_i / 2 trade_off) S_ij exp(r_j / 2 trade_off) without its overflow; small trade-offs mean relevance. -inf,
    without a gradient, for a subset that holds an item or a direction twice. In float64 inside.
    ValueError unless trade_off > 0.
    """
    if trade_off <= 0:
        raise ValueError(f"trade_off is {trade_off}; give more than 0 (small: relevance, large: diversity)")
    blocks = similarity.double()[subsets[:, :, None], subsets[:, None, :]]  # (M, s, s)
    sound = torch.linalg.eigvalsh(blocks.detach())[:, 0] > _SINGULAR
    safe = torch.where(sound[:, None, None], blocks, torch.eye(subsets.shape[1]).to(blocks))
    scores = relevance.double()[subsets].sum(1) / trade_off + torch.linalg.slogdet(safe).logabsdet
    return torch.where(sound, scores, -torch.inf).to(relevance.dtype)


def ceil_margin(scores: Tensor, gamma: float | None = None, ranks: Tensor | None = None) -> Tensor:
    """The better the LM finds a subset, the larger its score, by a margin per rank (CEIL's pairwise loss).

    scores (M,): of the subsets of one query, the LM's best first. They are scaled to [0, 1] by their extremes, which
    are not differentiated. For each rank gap g the mean of max(0, gamma g - (better - worse)) over the pairs that far
    apart; the sum over gaps. gamma: 1 / M by default. ranks (M,): the LM's, equal for ties, between which there is no
    preference: such a pair counts as one in order. Subsets of score -inf are left out, as if they had not been
    drawn; when all scores tie they are not scaled, and with fewer than two the loss is 0.
    >>> round(ceil_margin(torch.tensor([-1., -.2, -2.]), 1 / 3).item(), 4)
    0.5
    """
    if ranks is not None:
        ranks = ranks[scores.isfinite()]
    scores = scores[scores.isfinite()]
    count = len(scores)
    if count < 2:
        return 0 * scores.sum()
    low, high = scores.detach().aminmax()
    spread = high - low
    scaled = (scores - low) / torch.where(spread > _TIED, spread, 1)
    better, worse = torch.triu_indices(count, count, 1, device=scores.device)
    gap = (worse - better).to(scores)
    margin = gap * (1 / count if gamma is None else gamma)
    lack = F.relu(margin - (scaled[better] - scaled[worse]))
    if ranks is not None:
        lack = lack * (ranks[better] < ranks[worse])
    return lack.div(count - gap).sum()


def _first_of_block(scores: Tensor) -> Tensor:
    """(b,) columns: the first document of each query's own block in (b, b m)."""
    b, columns = scores.shape
    if columns % b:
        raise ValueError(f"{columns} columns do not divide into blocks for {b} queries")
    return torch.arange(b, device=scores.device) * (columns // b)
