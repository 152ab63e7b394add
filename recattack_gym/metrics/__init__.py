"""Pure functions that measure recommendation quality and attacks."""

from recattack_gym.metrics.ranking import hr_at_k, ndcg_at_k

__all__ = ["hr_at_k", "ndcg_at_k"]
