"""Adam on touched rows against Adam on the whole table."""

import numpy as np
import pytest
import torch

from agents.poisonrec.rows import HORIZON, RowTable
from agents.poisonrec.threads import Blocks, blocks

ALONE = Blocks(None, 1)


def run_both(
    touched: list[np.ndarray], n_rows: int = 7, size: int = 5, *, save_at: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the table after Adam on touched rows, and after PyTorch's Adam on the dense table."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((n_rows, size)).astype(np.float32)
    table = RowTable(start.copy(), learning_rate=0.01, epsilon=1e-8)
    dense = torch.from_numpy(start.astype(np.float64)).requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.01, eps=1e-8)
    for number, rows in enumerate(touched):
        gradient = rng.standard_normal((len(rows), size)).astype(np.float32)
        table.adam_step(rows, gradient, ALONE)
        full = np.zeros((n_rows, size))
        full[rows] = gradient
        dense.grad = torch.from_numpy(full)
        adam.step()
        if number == save_at:
            state = {name: array.copy() for name, array in table.state().items()}
            table = RowTable(np.zeros_like(start), learning_rate=0.01, epsilon=1e-8)
            table.restore(state)
    return table.values, dense.detach().numpy()


def test_rows_that_pause_for_a_while_move_as_in_adam_on_the_whole_table() -> None:
    rng = np.random.default_rng(1)
    touched = [np.flatnonzero(rng.random(7) < 0.3) for _ in range(300)]
    ours, dense = run_both(touched)
    assert np.allclose(ours, dense, atol=2e-5)


def test_rows_that_pause_for_long_are_let_go_and_come_back_decayed() -> None:
    # Row 0 is touched at the beginning and at the end; what is left out between is below 1e-5 of a move of
    # about 0.1 (ten steps of 0.01).
    always = [np.array([1, 2])] * (3 * HORIZON)
    touched = [np.array([0, 3])] * 5 + always + [np.array([0])] * 20 + always
    ours, dense = run_both(touched)
    assert np.allclose(ours, dense, atol=3e-5)
    table = RowTable(np.zeros((7, 5), dtype=np.float32), learning_rate=0.01, epsilon=1e-8)
    for rows in touched[: 5 + 2 * HORIZON]:
        table.adam_step(rows, np.ones((len(rows), 5), dtype=np.float32), ALONE)
    assert table.n_active == 2


def test_a_table_that_was_saved_and_restored_goes_on_as_before() -> None:
    rng = np.random.default_rng(2)
    touched = [np.flatnonzero(rng.random(7) < 0.1) for _ in range(2 * HORIZON)]
    whole, _ = run_both(touched)
    resumed, _ = run_both(touched, save_at=HORIZON + 30)
    assert np.array_equal(whole, resumed)


@pytest.mark.parametrize("setting", ["1", "2", "3"])
def test_the_number_of_threads_does_not_matter(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_NUM_THREADS", setting)
    rng = np.random.default_rng(3)
    values = rng.standard_normal((50, 5)).astype(np.float32)
    alone = RowTable(values.copy(), learning_rate=0.01, epsilon=1e-8)
    together = RowTable(values.copy(), learning_rate=0.01, epsilon=1e-8)
    with blocks() as threads:
        for _ in range(5):
            rows = np.flatnonzero(rng.random(50) < 0.5)
            gradient = rng.standard_normal((len(rows), 5)).astype(np.float32)
            alone.adam_step(rows, gradient, ALONE)
            together.adam_step(rows, gradient, threads)
    assert np.array_equal(alone.values, together.values)
