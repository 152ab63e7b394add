"""Pure functions that measure recommendation quality and attacks."""

from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k
from recattack_gym.metrics.ratings import Prediction, availability, average_rating, integrity, rmse

__all__ = [
    "Prediction",
    "availability",
    "average_rating",
    "hr_at_k",
    "integrity",
    "ndcg_at_k",
    "rmse",
]
