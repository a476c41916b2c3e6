"""Vectors for words from what stands around them, for an embedding to begin with.

    n_vc = Σ 1 / d over the places where c stands d ≤ WINDOW tokens from v, before or after
    M_vc = max(0, log (n_vc Σ_c' n_c'^¾ / (n_v n_c^¾)))           n_v = Σ_c n_vc
    M    ≈ U S Wᵀ, as many largest singular values as a vector is wide; the vectors are the rows of U S^½, turned,
                                                                  made equally long
    Where a model reads only the beginning of a vector, that has the largest values: it is turned by itself.

Positive pointwise mutual information with smoothed contexts, and the root of S: section 3 of Levy, Goldberg and Dagan
2015. Pairs that are nearer count for more as in Pennington et al. 2014 ("GloVe"). The randomised decomposition is
torch's, algorithm 5.1 of Halko et al. 2011.

Axes: V vocabulary, W width.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.text.corpus import Corpus

WINDOW = 4
SMOOTHING = 0.75
PART = 1 << 20  # tokens whose pairs are counted at once
PARTS = 8  # that are read at most, evenly over the text: some 2.4 GiB of pairs where hardly one comes twice
SPARE = 20  # directions more than wanted, and rounds of iteration: for the accuracy of the decomposition
ROUNDS = 2


@torch.no_grad()
def embed(table: nn.Embedding, corpus: Corpus, seed: int, read: int) -> None:
    """Give every word that the text knows a vector that is like those of similar words, as far as possible in the first
    `read` numbers of it.

    The table's root mean square stays as it was. A word that stands beside no other keeps its random vector.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = vectors(counts(corpus, table.num_embeddings), table.embedding_dim, read).to(table.weight)
    spread = table.weight.square().mean().sqrt()
    known = found.any(1, keepdim=True)
    table.weight.copy_(torch.where(known, found * spread * table.embedding_dim**0.5, table.weight))


def counts(corpus: Corpus, vocabulary: int) -> Tensor:
    """n (V, V), sparse: how much words stand beside each other, also across the end of a document."""
    total = _sparse(torch.empty(2, 0, dtype=torch.long), torch.empty(0), vocabulary)
    starts = range(0, len(corpus.tokens), PART)
    read = min(PARTS, len(starts))
    for index in range(read):
        start = starts[index * (len(starts) - 1) // max(read - 1, 1)]
        part = corpus.tokens[start : start + PART].long()
        corpus.touched(1, len(part))
        pairs = [torch.stack([part[:-distance], part[distance:]]) for distance in range(1, WINDOW + 1)]
        weights = [torch.full((pair.shape[1],), 1 / distance) for distance, pair in enumerate(pairs, 1)]
        total = (total + _sparse(torch.cat(pairs, 1), torch.cat(weights), vocabulary)).coalesce()
    return (total + total.t()).coalesce()


def vectors(pairs: Tensor, width: int, read: int) -> Tensor:
    """(V, W) of length 1, the first `read` numbers worth most, from n (V, V); 0 for a word with no pair that is more
    frequent than by chance.

    Draws from torch's generator.
    """
    (word, context), weight = pairs.indices(), pairs.values().double()
    own = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, word, weight)
    smooth = own**SMOOTHING
    information = (weight * smooth.sum() / (own[word] * smooth[context])).log().float()
    positive = information > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # four times as fast
        matrix = _sparse(pairs.indices()[:, positive], information[positive], len(pairs)).to_sparse_csr()
        left, values, _ = torch.svd_lowrank(matrix, q=width + SPARE, niter=ROUNDS)
    left = left * left.gather(0, left.abs().argmax(0, keepdim=True)).sign()  # which rounding decides otherwise
    # Within what is read no dimension is more than another: dropout hits any.
    turn = torch.block_diag(*(torch.linalg.qr(torch.randn(size, size))[0] for size in (read, width - read)))  # type: ignore[no-untyped-call]
    known = torch.zeros(len(pairs), 1).index_fill_(0, word[positive], 1)  # a matrix of low rank has directions to spare
    return F.normalize(known * (left * values.sqrt())[:, :width] @ turn)


def _sparse(places: Tensor, values: Tensor, vocabulary: int) -> Tensor:
    return torch.sparse_coo_tensor(places, values, (vocabulary, vocabulary), check_invariants=True)
