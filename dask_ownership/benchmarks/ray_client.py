"""The few methods of Dask's client that the cases use, on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["RayClient", "RayFuture"]


class RayFuture:
    """A Ray object reference with ``result()``.

    Parameters
    ----------
    ref
        The reference.
    ray
        The module ``ray``.
    """

    __slots__ = ("ray", "ref")

    def __init__(self, ref: Any, ray: Any) -> None:
        self.ref = ref
        self.ray = ray

    def result(self) -> Any:
        """Wait for the value and return it."""
        return self.ray.get(self.ref)


class RayClient:
    """Submits tasks to Ray in the way of ``distributed.Client``.

    There are no keys, and so ``pure`` makes no difference; ``workers`` is not obeyed.

    Parameters
    ----------
    ray
        The module ``ray``, initialised.

    Attributes
    ----------
    ray
        The parameter.
    functions
        Remote functions by their functions.
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.functions: dict[Any, Any] = {}

    def __enter__(self) -> RayClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.functions.clear()

    def remote(self, function: Callable[..., Any]) -> Any:
        """Return the remote function of a function; made once for each function."""
        remote = self.functions.get(function)
        if remote is None:
            remote = self.ray.remote(function)
            # Closures are all different and used once: keeping them would only take memory.
            if function.__name__ != "<lambda>":
                self.functions[function] = remote
        return remote

    def submit(
        self, function: Callable[..., Any], *args: Any, pure: bool = True, workers: Any = None
    ) -> RayFuture:
        """Start a task."""
        refs = [arg.ref if isinstance(arg, RayFuture) else arg for arg in args]
        return RayFuture(self.remote(function).remote(*refs), self.ray)

    def map(
        self, function: Callable[..., Any], values: Iterable[Any], pure: bool = True
    ) -> list[RayFuture]:
        """Start a task for every value."""
        remote = self.remote(function).remote
        return [RayFuture(remote(value), self.ray) for value in values]

    def gather(self, futures: list[RayFuture]) -> list[Any]:
        """Wait for all values and return them."""
        return list(self.ray.get([future.ref for future in futures]))

    def scatter(self, value: Any) -> RayFuture:
        """Store a value."""
        return RayFuture(self.ray.put(value), self.ray)
