"""Errors: one tree, the built-in types that callers expect, and a way through worker processes."""

import pickle

import pytest

from recattack_gym.core import errors
from recattack_gym.core.errors import (
    ArgumentError,
    ArtifactError,
    DataError,
    DatasetNotFoundError,
    KnowledgeError,
    RecAttackError,
    StateError,
    UnknownNameError,
)

EVERY = [
    ArgumentError("n must be a whole number >= 1, got 0"),
    UnknownNameError("victim", "ItemPopp", ["ItemPop", "BPR"]),
    StateError("call fit(log, rng) first"),
    DataError("x.csv, line 3: 'a' is no number"),
    DatasetNotFoundError("steam is not on this machine: put it in /data/steam"),
    ArtifactError("x.npz was altered"),
    KnowledgeError("a black-box attacker may not see the log"),
]


def test_every_error_of_the_module_is_tested_here() -> None:
    defined = {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, RecAttackError)
    }
    assert defined == {type(error) for error in EVERY} | {RecAttackError}


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ArgumentError, ValueError),
        (UnknownNameError, KeyError),
        (UnknownNameError, ArgumentError),
        (StateError, RuntimeError),
        (DataError, ValueError),
        (DatasetNotFoundError, FileNotFoundError),
        (DatasetNotFoundError, DataError),
        (ArtifactError, ValueError),
        (KnowledgeError, PermissionError),
    ],
)
def test_errors_are_what_callers_catch(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, RecAttackError)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_errors_survive_pickling_with_type_and_message(error: Exception, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  # our own bytes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_the_message_is_printed_as_it_is(error: Exception) -> None:
    assert str(error) == error.args[0]
    assert not str(error).startswith(("'", '"'))


def test_an_unknown_name_suggests_the_nearest_and_lists_the_known() -> None:
    message = str(UnknownNameError("victim", "ItemPopp", ["ItemPop", "BPR"]))
    assert message == "unknown victim 'ItemPopp'; did you mean 'ItemPop'? Known: BPR, ItemPop."
    assert str(UnknownNameError("victim", "zzz", ["BPR"])) == "unknown victim 'zzz'. Known: BPR."
    assert str(UnknownNameError("victim", 3, [])) == "unknown victim 3. Known: none."


@pytest.mark.parametrize("name", ["gru4rec", "GRU4REC", "gru"])
def test_an_unknown_name_finds_its_neighbour_in_another_case(name: str) -> None:
    message = str(UnknownNameError("victim", name, ["BPR", "GRU4Rec", "AutoRec"]))
    assert f"unknown victim {name!r}; did you mean 'GRU4Rec'? Known:" in message
