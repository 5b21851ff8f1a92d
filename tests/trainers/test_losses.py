from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iclkit.selectors import make_selector
from iclkit.trainers import _losses as losses

torch.set_num_threads(1)
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def units(seed: int, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(draw(seed, *shape), dim=-1)


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


# ---- InfoNCE (EPR, Se2)

EPR = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.0, 1.5, 1.0]])


def naive_info_nce(scores: Tensor, positive: list[int], mask: Tensor) -> float:
    total = 0.0
    for i, p in enumerate(positive):
        row = scores[i].tolist()
        total += log_sum_exp([v for n, v in enumerate(row) if n == p or not mask[i, n]]) - row[p]
    return total / len(positive)


def test_info_nce_of_the_worked_example() -> None:
    assert losses.info_nce(EPR, torch.tensor([0, 2])).item() == pytest.approx(0.613764, abs=1e-6)
    assert losses.info_nce(EPR).item() == pytest.approx(0.613764, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), SEEDS)
def test_info_nce_is_what_its_definition_says(b: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, mask = 5 * draw(seed, b, b * m), torch.from_numpy(rng.random((b, b * m)) < 0.4)
    positive = torch.from_numpy(rng.integers(0, b * m, b))
    value = losses.info_nce(scores, positive, mask)
    assert value.item() == pytest.approx(naive_info_nce(scores, positive.tolist(), mask), abs=1e-9)
    shifted = scores + 7 * draw(seed + 1, b, 1)
    assert losses.info_nce(shifted, positive, mask).item() == pytest.approx(value.item(), abs=1e-9)
    assert losses.info_nce(scores, positive).item() >= value.item() - 1e-12
    assert value.item() >= 0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), SEEDS)
def test_without_a_mask_losses_are_those_of_sentence_transformers(b: int, m: int, seed: int) -> None:
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score, pairwise_dot_score

    queries, documents, tau = units(seed, b, 6), units(seed + 1, b, m, 6), 0.05
    columns = [queries, *documents.unbind(1)]
    ranking = MultipleNegativesRankingLoss(None, scale=1 / tau, similarity_fct=dot_score)  # type: ignore[arg-type]
    theirs = ranking.compute_loss_from_embeddings(columns, torch.empty(0)).item()
    assert losses.info_nce(losses.similarities(queries, documents) / tau).item() == pytest.approx(theirs, abs=1e-6)
    if m > 1:
        teacher = draw(seed + 2, b, m)
        student = losses.own_candidates(losses.similarities(queries, documents)) / tau
        kl = DistillKLDivLoss(
            None,
            similarity_fct=pairwise_dot_score,
            student_temperature=tau,
            teacher_temperature=1.0,  # type: ignore[arg-type]
        )
        theirs = kl.compute_loss_from_embeddings(columns, teacher).item() / tau**2  # theirs is scaled by tau squared
        assert losses.distill(student, teacher).item() == pytest.approx(theirs, abs=1e-6)


def test_info_nce_of_one_query_with_its_positive_alone_is_0() -> None:
    assert losses.info_nce(torch.tensor([[3.7]])).item() == 0


def test_rows_count_by_their_weights() -> None:
    rows = [losses.info_nce(EPR[n : n + 1], torch.tensor([p])).item() for n, p in enumerate((0, 2))]
    weighted = losses.info_nce(EPR, weights=torch.tensor([0.5, 2.0])).item()
    assert weighted == pytest.approx((0.5 * rows[0] + 2 * rows[1]) / 2, abs=1e-6)
    assert losses.info_nce(EPR, weights=torch.ones(2)).item() == pytest.approx(losses.info_nce(EPR).item())


def test_a_false_negative_gets_no_gradient_and_the_positive_is_never_left_out() -> None:
    scores = EPR.clone().requires_grad_()
    everything = torch.ones(2, 4, dtype=torch.bool)
    losses.info_nce(scores, mask=everything & (torch.arange(4) != 1)).backward()
    assert scores.grad is not None
    assert scores.grad.nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]
    assert losses.info_nce(EPR, mask=everything).item() == 0


def test_false_negatives_are_the_positive_met_again_and_what_repeats_the_query() -> None:
    mask = losses.false_negatives([(1, 9), (1, 7), (2, 8)], [(7,), (8, 9), ()])
    assert mask.int().tolist() == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    assert losses.false_negatives([(1, 2)], [(1, 2)]).tolist() == [[False, False]]  # the own block is never masked


def test_similarities_stand_side_by_side_and_own_blocks_are_found_again() -> None:
    queries, documents = draw(0, 3, 4), draw(1, 3, 2, 4)
    scores = losses.similarities(queries, documents)
    assert scores.shape == (3, 6)
    for i in range(3):
        for j in range(3):
            for n in range(2):
                assert scores[i, 2 * j + n].item() == pytest.approx(float(queries[i] @ documents[j, n]))
    torch.testing.assert_close(losses.own_candidates(scores), torch.einsum("bd,bmd->bm", queries, documents))
    with pytest.raises(ValueError, match="5 columns"):
        losses.own_candidates(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="5 columns"):
        losses.info_nce(torch.zeros(2, 5))


# ---- UDR

UDR = torch.tensor([[1.0, 0.5, 2.0, 0.0]])


def naive_rank(scores: Tensor, ranks: Tensor, variant: str) -> float:
    total, pairs = 0.0, 0
    for row, order in zip(scores.tolist(), ranks.tolist(), strict=True):
        by_score = sorted(range(len(row)), key=lambda n: (-row[n], n))
        position = {n: p for p, n in enumerate(by_score, 1)}
        for i in range(len(row)):
            for j in range(len(row)):
                if order[i] >= order[j]:
                    continue
                pairs += 1
                difference = row[j] - row[i]
                if variant == "paper":
                    total += (1 / order[i] - 1 / order[j]) * softplus(difference)
                else:
                    weight = abs(1 / position[i] - 1 / position[j])
                    total += weight * softplus(min(max(difference, -50), 50))
    return total / len(scores) if variant == "paper" else total / max(pairs, 1)


def test_rank_losses_of_the_worked_example() -> None:
    paper = losses.udr_rank(UDR).item()
    assert paper == pytest.approx(1.760158, abs=1e-6)
    assert paper / 6 == pytest.approx(0.293360, abs=1e-6)
    code = losses.udr_rank(UDR, "lambda-mrr").item()
    assert code == pytest.approx(0.347156, abs=1e-6)
    assert code * 6 == pytest.approx(2.082937, abs=5e-6)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), SEEDS, st.sampled_from(losses.RANK_LOSSES), st.booleans())
def test_rank_losses_are_what_their_definitions_say(b: int, m: int, seed: int, variant: str, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.choice([0.1, 1, 40, 100], 1) * rng.standard_normal((b, m)))
    ranks = torch.from_numpy(rng.integers(1, m + 1, (b, m))) if ties else torch.arange(1, m + 1).expand(b, m)
    value = losses.udr_rank(scores, variant, ranks).item()
    assert value == pytest.approx(naive_rank(scores, ranks, variant), rel=1e-9, abs=1e-12)
    assert value >= 0
    shifted = losses.udr_rank(scores + 3 * draw(seed, b, 1), variant, ranks).item()
    assert shifted == pytest.approx(value, rel=1e-6, abs=1e-9)
    if not ties:
        assert losses.udr_rank(scores, variant).item() == value


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 7), SEEDS)
def test_swapping_two_scores_to_agree_with_the_lm_never_increases_the_rank_loss(m: int, seed: int) -> None:
    scores = 3 * draw(seed, 1, m)
    before = losses.udr_rank(scores).item()
    for i, j in combinations(range(m), 2):
        if scores[0, i] < scores[0, j]:
            swapped = scores.clone()
            swapped[0, [i, j]] = scores[0, [j, i]]
            assert losses.udr_rank(swapped).item() <= before + 1e-9


@pytest.mark.parametrize("variant", losses.RANK_LOSSES)
def test_the_rank_loss_pushes_the_best_up_and_the_worst_down_and_vanishes_once_gaps_are_wide(variant: str) -> None:
    scores = draw(3, 2, 5).requires_grad_()
    losses.udr_rank(scores, variant).backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, -1] > 0).all()
    ordered = torch.arange(5, 0, -1).double()[None]
    values = [losses.udr_rank(scale * ordered, variant).item() for scale in (1, 3, 10, 40)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-9


def test_with_two_documents_the_rank_loss_is_half_a_softplus() -> None:
    for variant in losses.RANK_LOSSES:
        value = losses.udr_rank(torch.tensor([[0.3, 1.1]]), variant).item()
        assert value == pytest.approx(0.5 * softplus(0.8), abs=1e-6)


@pytest.mark.parametrize("variant", losses.RANK_LOSSES)
def test_ties_of_the_lm_make_no_preference(variant: str) -> None:
    scores = draw(5, 2, 4).requires_grad_()
    tied = losses.udr_rank(scores, variant, torch.ones(4))
    tied.backward()
    assert tied.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()
    two = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    assert losses.udr_rank(two, variant, torch.tensor([1, 1])).item() == 0
    assert losses.udr_rank(torch.zeros(2, 1), variant).item() == 0


def test_an_absurd_score_stays_finite() -> None:
    scores = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    assert losses.udr_rank(scores, "lambda-mrr").item() == pytest.approx(25)
    paper = losses.udr_rank(scores)
    paper.backward()
    assert paper.item() == pytest.approx(1e4)
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_an_unknown_rank_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="paper, lambda-mrr"):
        losses.udr_rank(UDR, "mrr")


def test_udr_adds_both_losses_at_their_shares() -> None:
    scores, ranks = draw(1, 3, 12), torch.tensor([1, 2, 3, 4])
    own = torch.stack([scores[i, 4 * i : 4 * i + 4] for i in range(3)])
    for variant in losses.RANK_LOSSES:
        expected = 0.8 * losses.udr_rank(own, variant) + 0.2 * losses.info_nce(scores)
        torch.testing.assert_close(losses.udr_loss(scores, variant=variant), expected)
        torch.testing.assert_close(losses.udr_loss(scores, ranks, variant=variant), expected)
    torch.testing.assert_close(losses.udr_loss(EPR, weight=0), torch.tensor(0.613764))
    torch.testing.assert_close(losses.udr_loss(scores, weight=1), losses.udr_rank(own))


def test_udr_leaves_documents_that_tie_with_the_best_out_of_the_denominator() -> None:
    scores, ranks = draw(1, 2, 6), torch.tensor([[1, 1, 3], [1, 2, 2]])
    ties = torch.zeros(2, 6, dtype=torch.bool)
    ties[0, 1] = True
    value = losses.udr_loss(scores, ranks, weight=0)
    assert value.item() == pytest.approx(naive_info_nce(scores, [0, 3], ties), abs=1e-9)
    assert value.item() < losses.info_nce(scores).item()
    ties[1, 0] = True
    masked = losses.udr_loss(scores, ranks, weight=0, mask=ties)
    assert masked.item() == pytest.approx(naive_info_nce(scores, [0, 3], ties), abs=1e-9)


# ---- LLM-R


def test_the_reward_loss_is_cross_entropy_of_column_0_and_ln_8_without_knowledge() -> None:
    assert losses.reward_loss(torch.full((5, 8), 0.3)).item() == pytest.approx(math.log(8))
    scores = draw(0, 4, 3)
    expected = naive_info_nce(scores, [0] * 4, torch.zeros(4, 3, dtype=torch.bool))
    assert losses.reward_loss(scores).item() == pytest.approx(expected)


COSINES = torch.tensor([[0.80, 0.75, 0.60, 0.90]], dtype=torch.float64)
REWARD = torch.tensor([[2.0, 0.5, -1.0, 0.0]])


@pytest.mark.parametrize(("tau", "expected"), [(0.01, 9.660048), (0.1, 0.670729)])
def test_distillation_of_the_worked_example(tau: float, expected: float) -> None:
    assert losses.distill(COSINES / tau, REWARD).item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_distillation_is_what_its_definition_says(b: int, g: int, seed: int) -> None:
    student, teacher = 3 * draw(seed, b, g), 3 * draw(seed + 1, b, g)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for i in range(g):
            log_p, log_q = t[i] - log_sum_exp(t), s[i] - log_sum_exp(s)
            total += math.exp(log_p) * (log_p - log_q)
    value = losses.distill(student, teacher).item()
    assert value == pytest.approx(total / b, abs=1e-9)
    assert value >= -1e-12
    assert losses.distill(teacher + 5 * draw(seed, b, 1), teacher).item() == pytest.approx(0, abs=1e-9)
    if g > 1:
        unsure = teacher.clamp(-2, 2)  # a teacher that is sure of the first document would hardly notice
        assert losses.distill(unsure + torch.eye(g)[0], unsure).item() > 1e-3


def test_the_teacher_gets_no_gradient_and_may_rule_a_document_out() -> None:
    student = draw(0, 2, 3).requires_grad_()
    teacher = torch.tensor([[1.0, -torch.inf, 0.0], [-100.0, 2.0, -100.0]], requires_grad=True)
    value = losses.distill(student, teacher)
    value.backward()
    assert value.isfinite()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()


def naive_contrastive(queries: Tensor, documents: Tensor, tau: float, mask: Tensor) -> float:
    b, m, _ = documents.shape
    total = 0.0
    for i in range(b):
        positive = float(queries[i] @ documents[i, 0])
        pool = [positive]
        for j in range(b):
            for n in range(m):
                if (j, n) != (i, 0) and not mask[i, j * m + n]:
                    pool.append(float(queries[i] @ documents[j, n]))
            if j == i:
                continue
            j_good_for_i, i_good_for_j = bool(mask[i, j * m]), bool(mask[j, i * m])
            if not i_good_for_j:
                pool.append(float(documents[i, 0] @ queries[j]))
            if not j_good_for_i and not i_good_for_j:
                pool.append(float(queries[i] @ queries[j]))
                pool.append(float(documents[i, 0] @ documents[j, 0]))
        total += log_sum_exp([p / tau for p in pool]) - positive / tau
    return total / b


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), SEEDS, st.sampled_from([0.01, 0.1, 1.0]))
def test_the_contrastive_loss_is_what_its_definition_says(b: int, m: int, seed: int, tau: float) -> None:
    queries, documents = units(seed, b, 6), units(seed + 1, b, m, 6)
    mask = torch.from_numpy(np.random.default_rng(seed).random((b, b * m)) < 0.3)
    none = torch.zeros_like(mask)
    for given_mask, meant in ((None, none), (none, none), (mask, mask)):
        value = losses.full_contrastive(queries, documents, tau, given_mask).item()
        assert value == pytest.approx(naive_contrastive(queries, documents, tau, meant), rel=1e-9, abs=1e-9)


def test_contrastive_on_one_query_is_cross_entropy_over_its_own_documents() -> None:
    queries, documents = units(0, 1, 6).requires_grad_(), units(1, 1, 4, 6)
    value = losses.full_contrastive(queries, documents, 0.1)
    value.backward()
    own = (documents[0] @ queries[0].detach() / 0.1)[None]
    assert value.item() == pytest.approx(losses.reward_loss(own).item(), abs=1e-12)
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


def test_llm_r_is_distillation_plus_a_share_of_the_contrast() -> None:
    queries, documents, teacher = units(0, 3, 6), units(1, 3, 4, 6), draw(2, 3, 4)
    own = losses.own_candidates(losses.similarities(queries, documents))
    value = losses.llm_r_loss(queries, documents, teacher, tau=0.05, alpha=0.2)
    expected = losses.distill(own / 0.05, teacher) + 0.2 * losses.full_contrastive(queries, documents, 0.05)
    torch.testing.assert_close(value, expected)
    only = losses.llm_r_loss(queries, documents, teacher, tau=0.05, alpha=0)
    torch.testing.assert_close(only, losses.distill(own / 0.05, teacher))


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="tau is 0"):
        losses.full_contrastive(units(0, 2, 3), units(1, 2, 2, 3), 0)


# ---- CEIL

ITEMS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
PAIRS = torch.tensor([*combinations(range(4), 2)])


def test_pair_scores_of_the_worked_example() -> None:
    relevance, similarity = losses.dpp_parts(ITEMS[0], ITEMS)
    scores = losses.dpp_scores(relevance - relevance.max(), similarity, PAIRS, 0.1)
    expected = [-2.660731, -3.021651, -5.287682, -6.228926, -7.021651, -8.660731]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert PAIRS[scores.argmax()].tolist() == [0, 1]
    assert PAIRS[losses.dpp_scores(relevance, similarity, PAIRS, 1.0).argmax()].tolist() == [0, 3]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), SEEDS, st.sampled_from([0.05, 0.1, 1.0, 10.0]))
def test_a_subset_scores_the_log_determinant_of_its_kernel(n: int, s: int, seed: int, trade_off: float) -> None:
    rng = np.random.default_rng(seed)
    s = min(s, n)
    vectors = units(seed, n + 1, 8)
    relevance, similarity = losses.dpp_parts(vectors[0], vectors[1:])
    assert torch.linalg.eigvalsh(similarity).min() >= -1e-8
    subsets = torch.from_numpy(np.stack([rng.permutation(n)[:s] for _ in range(4)]))
    scores = losses.dpp_scores(relevance, similarity, subsets, trade_off)
    weight = torch.exp((relevance - relevance.max()) / (2 * trade_off))
    kernel = weight[:, None] * similarity * weight
    for rows, score in zip(subsets.tolist(), scores.tolist(), strict=True):
        sign, logdet = np.linalg.slogdet(kernel[rows][:, rows].numpy())
        assert sign == 1
        assert score - s * float(relevance.max()) / trade_off == pytest.approx(logdet, abs=1e-6)
    turned = subsets[:, torch.from_numpy(rng.permutation(s))]
    torch.testing.assert_close(losses.dpp_scores(relevance, similarity, turned, trade_off), scores)
    moved = losses.dpp_scores(relevance + 0.7, similarity, subsets, trade_off)
    torch.testing.assert_close(moved - scores, torch.full_like(scores, s * 0.7 / trade_off))


def test_small_trade_offs_choose_the_most_relevant_and_large_ones_the_most_spread() -> None:
    vectors = units(4, 9, 8)
    relevance, similarity = losses.dpp_parts(vectors[0], vectors[1:])
    triples = torch.tensor([*combinations(range(8), 3)])
    near = triples[losses.dpp_scores(relevance, similarity, triples, 1e-4).argmax()]
    assert set(near.tolist()) == set(relevance.topk(3).indices.tolist())
    wide = triples[losses.dpp_scores(relevance, similarity, triples, 1e6).argmax()]
    volumes = torch.stack([torch.linalg.det(similarity[t][:, t]) for t in triples])
    assert wide.tolist() == triples[volumes.argmax()].tolist()


def test_the_best_subset_is_the_one_the_dpp_selector_builds_when_greedy_finds_it() -> None:
    relevance, similarity = losses.dpp_parts(ITEMS[0], ITEMS)
    selector = make_selector("dpp,scale=1,sort=picks")
    order, _ = selector.reorder((ITEMS @ ITEMS[0]).numpy(), (ITEMS @ ITEMS.T).numpy(), 2)
    assert sorted(order) == PAIRS[losses.dpp_scores(relevance, similarity, PAIRS, 1.0).argmax()].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_subset_with_a_repeat_scores_minus_infinity_and_gets_no_gradient(dtype: torch.dtype) -> None:
    vectors = torch.cat([units(0, 4, 8), units(0, 4, 8)[3:]]).to(dtype).requires_grad_()
    relevance, similarity = losses.dpp_parts(units(7, 8).to(dtype), vectors)  # rows 3 and 4 are equal
    scores = losses.dpp_scores(relevance, similarity, torch.tensor([[0, 1, 0], [3, 2, 4], [0, 1, 2]]), 0.1)
    assert scores.dtype == dtype
    assert scores.isneginf().tolist() == [True, True, False]
    scores[2].backward(retain_graph=True)
    alone = vectors.grad
    assert alone is not None
    alone = alone.clone()
    vectors.grad = None
    losses.ceil_margin(scores).backward()  # one subset is left: nothing to compare
    assert vectors.grad is not None
    assert not vectors.grad.any()
    assert alone.isfinite().all()
    assert alone[:3].any()
    assert not alone[3:].any()


def test_a_trade_off_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="trade_off is 0"):
        losses.dpp_scores(torch.ones(2), torch.eye(2), torch.tensor([[0, 1]]), 0)


def naive_margin(scores: list[float], gamma: float) -> float:
    low, high = min(scores), max(scores)
    scaled = [(s - low) / (high - low) if high > low else 0.0 for s in scores]
    total = 0.0
    for gap in range(1, len(scores)):
        terms = [max(0.0, gamma * gap - (scaled[j] - scaled[j + gap])) for j in range(len(scores) - gap)]
        total += sum(terms) / len(terms)
    return total


def test_the_margin_loss_of_the_worked_example() -> None:
    assert losses.ceil_margin(torch.tensor([-1.0, -0.2, -2.0]), 1 / 3).item() == pytest.approx(0.5, abs=1e-6)
    assert losses.ceil_margin(torch.tensor([-1.0, -0.2, -2.0])).item() == pytest.approx(0.5, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), SEEDS, st.sampled_from([None, 0.02, 0.5]))
def test_the_margin_loss_is_what_its_definition_says(count: int, seed: int, gamma: float | None) -> None:
    scores = 10 * draw(seed, count)
    value = losses.ceil_margin(scores, gamma).item()
    assert value == pytest.approx(naive_margin(scores.tolist(), 1 / count if gamma is None else gamma), abs=1e-9)
    assert losses.ceil_margin(3 * scores + 2, gamma).item() == pytest.approx(value, abs=1e-9)
    best = min(losses.ceil_margin(scores[list(p)], gamma).item() for p in [*permutations(range(count))][:40])
    ordered = losses.ceil_margin(scores.sort(descending=True).values, gamma).item()
    assert ordered <= best + 1e-9
    assert losses.ceil_margin(torch.linspace(3, -4, count)).item() == pytest.approx(0, abs=1e-6)
    holes = torch.cat([scores[:1], torch.tensor([-torch.inf]).double(), scores[1:]])
    assert losses.ceil_margin(holes, gamma).item() == pytest.approx(value, abs=1e-12)


def test_scores_that_all_tie_are_pushed_apart_gently() -> None:
    scores = torch.full((4,), 2.5, requires_grad=True)
    value = losses.ceil_margin(scores)
    value.backward()
    assert value.item() == pytest.approx(sum(g / 4 for g in (1, 2, 3)))
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0] < 0 < scores.grad[-1]


def test_fewer_than_two_sound_subsets_teach_nothing() -> None:
    for values in ([1.0], [-torch.inf, -torch.inf], [-torch.inf, 2.0], []):
        scores = torch.tensor(values, requires_grad=True)
        value = losses.ceil_margin(scores)
        value.backward()
        assert value.item() == 0
        assert scores.grad is not None
        assert not scores.grad.any()


# ---- all of them

MASK = torch.zeros(3, 12, dtype=torch.bool)
MASK[0, 4] = MASK[1, 3] = MASK[2, 1] = True
RANKS = torch.tensor([[1, 2, 2, 4], [1, 1, 3, 4], [4, 3, 2, 1]])
SUBSETS = torch.tensor([[0, 1, 2], [1, 3, 4], [5, 0, 4], [2, 3, 5]])


def ceil(query: Tensor, items: Tensor) -> Tensor:
    return losses.dpp_scores(*losses.dpp_parts(query, items), SUBSETS, 0.3)


DIFFERENTIABLE: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "info_nce": (losses.info_nce, [draw(0, 3, 12)]),
    "info_nce, masked": (lambda s: losses.info_nce(s, mask=MASK), [draw(0, 3, 12)]),
    "similarities": (lambda q, d: losses.info_nce(losses.similarities(q, d)), [draw(0, 3, 5), draw(1, 3, 4, 5)]),
    "udr paper": (losses.udr_rank, [draw(0, 3, 4)]),
    "udr paper, ties": (lambda s: losses.udr_rank(s, ranks=RANKS), [draw(0, 3, 4)]),
    "udr lambda-mrr": (lambda s: losses.udr_rank(s, "lambda-mrr", RANKS), [draw(0, 3, 4)]),
    "udr": (lambda s: losses.udr_loss(s, RANKS, mask=MASK), [draw(0, 3, 12)]),
    "reward": (losses.reward_loss, [draw(0, 3, 4)]),
    "distill": (lambda s: losses.distill(s, RANKS.double()), [draw(0, 3, 4)]),
    "contrastive": (lambda q, d: losses.full_contrastive(q, d, 0.5, MASK), [units(0, 3, 5), units(1, 3, 4, 5)]),
    "llm_r": (
        lambda q, d: losses.llm_r_loss(q, d, RANKS.double(), tau=0.5, mask=MASK),
        [units(0, 3, 5), units(1, 3, 4, 5)],
    ),
    "dpp": (
        lambda r, s: losses.dpp_scores(r, s, SUBSETS, 0.3),
        [draw(0, 6), losses.dpp_parts(units(0, 7), units(1, 6, 7))[1]],
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, inputs = DIFFERENTIABLE[name]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in leaves]
    assert torch.autograd.gradcheck(function, leaves)
    for now, then in zip(leaves, before, strict=True):
        assert torch.equal(now, then)


def test_the_margin_loss_has_the_gradient_of_its_scale_held_still() -> None:
    scores, gamma = torch.tensor([0.2, 1.5, -0.7, 0.9], dtype=torch.float64), 0.25
    low, spread = -0.7, 2.2

    def held(x: Tensor) -> Tensor:
        scaled = (x - low) / spread
        terms = [torch.relu(gamma * g - scaled[: 4 - g] + scaled[g:]).mean() for g in range(1, 4)]
        return torch.stack(terms).sum()

    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    losses.ceil_margin(ours, gamma).backward()
    held(theirs).backward()
    assert torch.autograd.gradcheck(held, [theirs])
    assert ours.grad is not None
    assert ours.grad.any()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("loss", ["epr", "udr", "lambda-mrr", "llm_r", "ceil"])
def test_descending_a_loss_finds_the_lms_order(loss: str) -> None:
    queries, documents = units(0, 4, 8).float(), units(1, 4, 4, 8).float()
    towers = [queries.clone().requires_grad_(), documents.clone().requires_grad_()]
    optimiser = torch.optim.Adam(towers, lr=0.05)
    teacher = torch.tensor([3.0, 1.0, -1.0, -3.0]).expand(4, 4)
    first = None
    for _ in range(150):
        q, d = (torch.nn.functional.normalize(t, dim=-1) for t in towers)
        scores = losses.similarities(q, d) / 0.1
        if loss == "epr":
            value = losses.info_nce(scores)
        elif loss in ("udr", "lambda-mrr"):
            value = losses.udr_loss(scores, variant="paper" if loss == "udr" else loss)
        elif loss == "llm_r":
            value = losses.llm_r_loss(q, d, teacher, tau=0.1)
        else:
            singles = torch.arange(4)[:, None]
            value = torch.stack(
                [losses.ceil_margin(losses.dpp_scores(*losses.dpp_parts(q[i], d[i]), singles, 0.1)) for i in range(4)]
            ).mean()
        first = value.item() if first is None else first
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    q, d = (torch.nn.functional.normalize(t.detach(), dim=-1) for t in towers)
    own = losses.own_candidates(losses.similarities(q, d))
    assert value.item() < 0.6 * first
    assert (own.argmax(1) == 0).all()
    if loss != "epr":
        assert (own.argsort(1, descending=True) == torch.arange(4)).all()
