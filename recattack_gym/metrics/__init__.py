"""Pure functions that measure recommendation quality and attacks."""

from recattack_gym.metrics.bands import BANDS, exposures, popularity_bands
from recattack_gym.metrics.detection import (
    Flagged,
    average_precision,
    detection_auc,
    precision_at_n,
    precision_at_prevalence,
    recall_at_fpr,
    recall_at_n,
)
from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k
from recattack_gym.metrics.ratings import Prediction, availability, average_rating, integrity, rmse
from recattack_gym.metrics.stealth import (
    StealthTests,
    holm,
    jensen_shannon,
    paired_t,
    stealth_tests,
    total_variation,
)
from recattack_gym.metrics.targets import (
    hit_one_at_k,
    list_jaccard,
    target_hit_rate_of_test_users_at_k,
    target_hr_at_k,
    target_ndcg_at_k,
    target_recall_at_k,
    target_recall_at_k_unmasked,
)

__all__ = [
    "BANDS",
    "Flagged",
    "Prediction",
    "StealthTests",
    "availability",
    "average_precision",
    "average_rating",
    "detection_auc",
    "exposures",
    "hit_one_at_k",
    "holm",
    "hr_at_k",
    "integrity",
    "jensen_shannon",
    "list_jaccard",
    "ndcg_at_k",
    "paired_t",
    "popularity_bands",
    "precision_at_n",
    "precision_at_prevalence",
    "recall_at_fpr",
    "recall_at_n",
    "rmse",
    "stealth_tests",
    "target_hit_rate_of_test_users_at_k",
    "target_hr_at_k",
    "target_ndcg_at_k",
    "target_recall_at_k",
    "target_recall_at_k_unmasked",
    "total_variation",
]
