"""Write events for TensorBoard, where it is installed and asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from recattack_gym.core import ArgumentError


@contextmanager
def event_writer(
    log_dir: Path | None,
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Give a function that writes the scalars of one step.

    Args:
        log_dir: Folder of the events; `None` writes nothing.

    Raises:
        ArgumentError: If `log_dir` is given and the package `tensorboard` is not installed.
    """
    if log_dir is None:
        yield lambda _number, _scalars: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError(
            f"log_dir {str(log_dir)!r} needs TensorBoard, which is not installed: "
            "pip install 'recattack-gym[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(log_dir))

    def write(number: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, number)

    try:
        yield write
    finally:
        writer.close()
