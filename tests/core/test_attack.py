"""Budget, goal and knowledge: what is allowed and what is refused."""

import pytest

from recattack_gym.core import ArgumentError, AttackBudget, AttackGoal, Knowledge


def test_the_default_budget_is_that_of_poisonrec() -> None:
    assert (AttackBudget().n_fake_users, AttackBudget().profile_size) == (20, 20)
    assert AttackBudget().n_clicks == 400


@pytest.mark.parametrize("setting", ["n_fake_users", "profile_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, None])
def test_a_budget_is_whole_and_positive(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must be a whole number >= 1"):
        AttackBudget(**{setting: value})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_items": ()}, "target_items must name at least one item"),
        ({"target_items": (3, 3)}, r"target_items must be distinct, got \(3, 3\)"),
        ({"target_items": (-1,)}, "target_items must be a whole number >= 0, got -1"),
        ({"target_items": (1.5,)}, "target_items must be a whole number"),
        ({"target_items": (1,), "direction": "up"}, "direction must be one of 'push', 'nuke'"),
    ],
)
def test_a_goal_names_distinct_items_and_a_direction(
    arguments: dict[str, object], message: str
) -> None:
    assert AttackGoal(target_items=(1, 2)).direction == "push"
    with pytest.raises(ArgumentError, match=message):
        AttackGoal(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_each_level_of_knowledge_includes_the_ones_before() -> None:
    levels = [Knowledge.BLACK_BOX, Knowledge.GRAY_BOX, Knowledge.WHITE_BOX]
    for i, level in enumerate(levels):
        assert [level.includes(other) for other in levels] == [j <= i for j in range(3)]
    assert Knowledge("gray_box") is Knowledge.GRAY_BOX
