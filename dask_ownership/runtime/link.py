"""The former place of `dask_ownership.runtime.comm.link`, for one release.

Programs outside this project take the number of the protocol from here.
"""

from __future__ import annotations

import warnings

from dask_ownership.runtime.comm import link


def __getattr__(name: str) -> object:
    """Return a name of the new module, with a warning."""
    value = getattr(link, name)  # AttributeError comes first: questions of tools get no warning
    warnings.warn(
        f"{__name__}.{name} is {link.__name__}.{name} now", DeprecationWarning, stacklevel=2
    )
    return value
