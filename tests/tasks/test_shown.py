"""Which failures Prefect tries again."""

import asyncio

import pytest
from prefect.client.schemas.objects import State, StateType

from recsys.config import InputError
from recsys.files import BusyError, UnreachableError
from tasks.shown import is_busy, is_unreachable


@pytest.mark.parametrize(
    ("error", "busy", "unreachable"),
    [
        (BusyError("x"), True, False),
        (UnreachableError("x"), False, True),
        (InputError("x"), False, False),
        (ValueError("x"), False, False),
    ],
)
def test_only_what_may_pass_by_itself(error: Exception, busy: bool, unreachable: bool) -> None:
    state = State(type=StateType.FAILED, data=error)
    assert asyncio.run(is_busy(None, None, state)) == busy
    assert asyncio.run(is_unreachable(None, None, state)) == unreachable
