"""The number of pairs of a list_lru and a memcg that a sample of slabs does not show.

Importable without drgn. A memcg has an entry in a list_lru for its objects in any slab, so a sample of the slabs shows
only some of the pairs. How many pairs have no sampled slab follows from those that have one or two, and the fraction of
all slabs that was sampled. Pairs with very different numbers of slabs make the exact number unknown, but it has bounds:

- at least that of the Chao2 estimator for sampling without replacement: A. Chao and C.-W. Lin, "Nonparametric lower
  bounds for species richness and shared species richness under sampling without replacement", Biometrics 68 (2012);
- at most ``once * (1 - fraction) / fraction``. A pair with k slabs has one sampled slab with probability k * fraction *
  (1 - fraction)^(k - 1), so it contributes k times the probability (1 - fraction)^k that it has none. This is the first
  term of I. J. Good and G. H. Toulmin, "The number of new species, and the increase in population coverage, when a
  sample is increased", Biometrika 43 (1956).

The estimate is halfway between the two. The error covers both, and what chance adds to them.
"""

import math
from collections import Counter, namedtuple

# Standard normal quantile of a two-sided interval of 95 %.
_Z = 1.96
# Added to the number of pairs in its variance: half the square of _Z, as in the interval of Agresti and Coull (1998).
_SMALL_SAMPLE_PAIRS = 2
# Attempts to draw a new pair; after half of them any list_lru of the kind will do.
_MAX_ATTEMPTS = 16
# Bounds the time of impute(): a second. More unseen pairs are no estimate: most of what there is was not seen.
MAX_PAIRS = 50000

Unseen = namedtuple("Unseen", "pairs error")
"""The estimated number of unseen pairs, and the half width of its 95 % interval."""


def estimate(slab_counts, sampled, fraction):
    """Return the Unseen pairs of a sample.

    :param slab_counts: for each seen pair, the number of sampled slabs in which it has an object.
    :param sampled: number of sampled slabs.
    :param fraction: of all slabs that was sampled, above 0 and at most 1.
    """
    if fraction == 1:
        return Unseen(0, 0)
    counts = Counter(slab_counts)
    once, twice = counts[1], counts[2]
    unseen_odds = (1 - fraction) / fraction
    weight = sampled / max(1, sampled - 1)
    low = once**2 / (2 * weight * twice + once / unseen_odds) if once else 0
    high = once * unseen_odds
    variance = (once + _SMALL_SAMPLE_PAIRS) * unseen_odds / fraction
    if once:
        # By the delta method, as in Chao and Lin.
        low_variance = low + (low / once + 2 * weight * twice * low**2 / once**3) ** 2 * once
        low_variance += 4 * weight**2 * twice * (low / once) ** 4
        variance = max(variance, low_variance)
    return Unseen((low + high) / 2, (high - low) / 2 + _Z * math.sqrt(variance))


def impute(owners, once, count, groups, random):
    """Return pairs that stand for unseen ones: as the pairs that were seen once, of the same kinds of list_lrus.

    A pair that is the only one of its list_lru stands for one in a list_lru that has none so far, which costs as much.

    :param owners: seen pairs: the memcgs of each list_lru.
    :param once: list of the pairs that were seen once.
    :param count: number of pairs to return, up to MAX_PAIRS. They are fewer if there are not so many.
    :param groups: list_lrus of the same kind, by list_lru.
    :param random: random.Random.
    """
    imputed = set()
    with_pairs = {list_lru for list_lru, memcgs in owners.items() if memcgs}
    for list_lru, _ in random.choices(once, k=count) if once else ():
        is_only = len(owners[list_lru]) == 1
        for attempt in range(_MAX_ATTEMPTS):
            pair = random.choice(groups[list_lru]), random.choice(once)[1]
            is_as_wanted = (pair[0] not in with_pairs) == is_only or attempt > _MAX_ATTEMPTS // 2
            if is_as_wanted and pair not in imputed and pair[1] not in owners.get(pair[0], ()):
                imputed.add(pair)
                with_pairs.add(pair[0])
                break
    return imputed
