"""mpconv for programs without an event loop: the same functions, and each returns when its job is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from mpconv import api

_Words = ParamSpec("_Words")
_Result = TypeVar("_Result")


def _blocking(job: Callable[_Words, Coroutine[Any, Any, _Result]]) -> Callable[_Words, _Result]:
    @wraps(job)
    def run(*words: _Words.args, **options: _Words.kwargs) -> _Result:
        return asyncio.run(job(*words, **options))

    return run


convert = _blocking(api.convert)
deploy = _blocking(api.deploy)
compare = _blocking(api.compare)
checksum = _blocking(api.checksum)
