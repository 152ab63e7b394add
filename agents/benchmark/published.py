"""Numbers that papers print, to be shown beside ours; never used to compute anything."""

from collections.abc import Mapping

TABLE3_VICTIMS = ("ItemPop", "CoVisitation", "PMF", "BPR", "NeuMF", "AutoRec", "GRU4Rec", "NGCF")

TABLE3_HEURISTICS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "steam": {
        "random": (7, 278, 653, 114, 1362, 667, 783, 2203),
        "popular": (6, 1895, 541, 106, 599, 738, 1331, 1093),
        "middle": (2, 530, 609, 116, 449, 643, 1347, 798),
        "power-item": (6, 1794, 534, 107, 588, 661, 1401, 852),
    },
    "ml-1m": {
        "random": (0, 492, 2282, 2012, 412, 11117, 236, 6),
        "popular": (0, 1420, 4237, 1927, 10, 10471, 1367, 13015),
        "middle": (0, 120, 2415, 2055, 10, 10896, 282, 12),
        "power-item": (0, 1136, 4286, 1972, 545, 10691, 1264, 11230),
    },
    "amazon-phone": {
        "random": (2020, 464, 10432, 4282, 4794, 2822, 2826, 8784),
        "popular": (2409, 2368, 9939, 3846, 1290, 3885, 2454, 8048),
        "middle": (4946, 208, 9050, 3565, 5981, 2627, 3699, 9552),
        "power-item": (2358, 1824, 10880, 3779, 1978, 3046, 944, 7408),
    },
    "amazon-clothing": {
        "random": (54820, 413, 1848, 2827, 4656, 11270, 7786, 7376),
        "popular": (53265, 1262, 1704, 2803, 2424, 12032, 11827, 9468),
        "middle": (61156, 125, 1699, 3077, 4733, 9768, 12005, 5672),
        "power-item": (57508, 686, 1810, 2678, 2525, 11664, 7234, 8592),
    },
}
"""RecNum of the heuristic attacks: PoisonRec (Song et al., ICDE 2020), Table III.

Dataset, attacker, then one number per victim in the order of `TABLE3_VICTIMS`.
"""
