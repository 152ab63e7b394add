"""Attacks that follow a gradient through a recommender that is trained on them.

Here: attacks through surrogates, recommenders that the attacker trains on the log. Gradient Passing
(`gradient_passing`) makes an epoch of a surrogate's training do what several would; every attacker has it as
a setting. In `ratings`: white-box attacks on victims that predict ratings.
"""
