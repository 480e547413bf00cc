from __future__ import annotations

import pytest

from sad_runtime.backends.batch_limit import BatchLimit
from sad_runtime.errors import BackendError, OutOfDeviceMemoryError


class Memory:
    """Holds so many images."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def run(self, size: int) -> str:
        self.tried.append(size)
        if size > self.room:
            raise OutOfDeviceMemoryError("out of memory")
        return f"in pieces of {size}"


def test_a_size_that_did_not_fit_is_never_tried_again_and_told_of_once() -> None:
    notices: list[str] = []
    limit, memory = BatchLimit(64, notice=notices.append), Memory(20)
    assert [limit.fit(100, memory.run) for _ in range(3)] == ["in pieces of 16"] * 3
    assert memory.tried == [64, 32, 16, 16, 16]
    assert limit.size == 16
    assert notices == ["GPU memory is short: going on with batches of 16"]


def test_without_a_limit_the_batch_itself_is_halved() -> None:
    limit, memory = BatchLimit(None), Memory(5)
    assert limit.fit(5, memory.run) == "in pieces of 5"
    assert limit.size is None
    assert limit.fit(11, memory.run) == "in pieces of 5"
    assert limit.size == 5


@pytest.mark.parametrize(("smallest", "tried"), [(1, [7, 3, 1]), (2, [7, 3, 2])])
def test_the_smallest_batch_that_does_not_fit_is_an_error(smallest: int, tried: list[int]) -> None:
    notices: list[str] = []
    limit, memory = BatchLimit(7, smallest=smallest, notice=notices.append), Memory(0)
    with pytest.raises(BackendError, match=f"not even hold a batch of {smallest}: out of memory") as caught:
        limit.fit(9, memory.run)
    assert not isinstance(caught.value, OutOfDeviceMemoryError)
    assert caught.value.hint is not None
    assert memory.tried == tried
    assert notices == []


def test_another_error_is_not_tried_again() -> None:
    def fail(size: int) -> None:
        raise BackendError("something else")

    limit = BatchLimit(8)
    with pytest.raises(BackendError, match="something else"):
        limit.fit(8, fail)
    assert limit.size == 8


def test_what_a_failed_attempt_held_is_let_go_before_the_next() -> None:
    import weakref

    class Buffer: ...

    held: list[weakref.ref[Buffer]] = []

    def run(size: int) -> int:
        assert [ref for ref in held if ref() is not None] == []
        buffer = Buffer()
        held.append(weakref.ref(buffer))
        if size > 1:
            raise OutOfDeviceMemoryError("out of memory")
        return size

    assert BatchLimit(8).fit(8, run) == 1
    assert len(held) == 4
