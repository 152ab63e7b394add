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

TABLE3_LEARNERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "steam": {
        "conslop": (8, 4715, 633, 121, 648, 683, 2401, 1699),
        "appgrad": (5421, 135, 686, 122, 2914, 1256, 5052, 8094),
        "poisonrec": (6496, 10917, 1211, 163, 4994, 1643, 24319, 25013),
    },
    "ml-1m": {
        "conslop": (0, 2162, 4246, 1624, 2, 11578, 714, 11493),
        "appgrad": (0, 118, 3580, 2044, 2604, 12124, 4372, 24),
        "poisonrec": (0, 1552, 7050, 2442, 2742, 12472, 18525, 21577),
    },
    "amazon-phone": {
        "conslop": (2074, 6234, 10787, 4099, 1648, 4694, 2858, 9136),
        "appgrad": (61792, 131, 11238, 4187, 26800, 4700, 4072, 10852),
        "poisonrec": (82032, 5683, 12195, 4530, 28646, 4873, 8513, 12324),
    },
    "amazon-clothing": {
        "conslop": (52921, 3312, 1814, 2842, 2294, 11981, 15490, 7524),
        "appgrad": (180432, 62, 3216, 3816, 8808, 13472, 13424, 11090),
        "poisonrec": (218275, 2239, 3363, 4656, 12592, 14245, 22013, 14391),
    },
}
"""RecNum of the other attacks of the same table, in the same order."""

TABLE3: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    dataset: {**TABLE3_HEURISTICS[dataset], **TABLE3_LEARNERS[dataset]}
    for dataset in TABLE3_HEURISTICS
}
"""All 224 numbers of Table III: dataset, attacker, then one per victim in the order of `TABLE3_VICTIMS`."""


def published_number(dataset: str, attacker: str, victim: str) -> int | None:
    """Return what Table III has for a victim of ours, `None` if nothing.

    Args:
        dataset: One of `TABLE3`.
        attacker: One of its rows.
        victim: `CoVisitation-Counts` has the paper's column CoVisitation, as `CoVisitation` has: the paper
            does not say which of the two it means.
    """
    column = "CoVisitation" if victim == "CoVisitation-Counts" else victim
    if column not in TABLE3_VICTIMS:
        return None
    return TABLE3[dataset][attacker][TABLE3_VICTIMS.index(column)]
