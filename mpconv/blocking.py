"""mpconv for programs without an event loop: the same functions, and each returns when its job is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from mpconv.api import copying, fanout
from mpconv.inspection import queries

_Words = ParamSpec("_Words")
_Result = TypeVar("_Result")


def _blocking(job: Callable[_Words, Coroutine[Any, Any, _Result]]) -> Callable[_Words, _Result]:
    @wraps(job)
    def run(*words: _Words.args, **options: _Words.kwargs) -> _Result:
        return asyncio.run(job(*words, **options))

    return run


convert = _blocking(copying.convert)
deploy = _blocking(copying.deploy)
resume = _blocking(copying.resume)
compare = _blocking(copying.compare)
checksum = _blocking(copying.checksum)
info = _blocking(queries.info)
backing_chain = _blocking(queries.backing_chain)
map = _blocking(queries.map)
measure = _blocking(queries.measure)
check = _blocking(queries.check)
examine = _blocking(queries.examine)
fan_out = _blocking(fanout.fan_out)
resume_fan_out = _blocking(fanout.resume_fan_out)
