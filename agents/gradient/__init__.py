"""Attacks through a surrogate: the attacker trains recommenders of its own on the log and follows gradients.

Gradient Passing (`gradient_passing`) makes an epoch of a surrogate's training do what several would; every
attacker here has it as a setting.
"""
