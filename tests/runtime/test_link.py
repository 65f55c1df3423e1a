"""Names at their former places."""

from __future__ import annotations

import pytest

from dask_ownership.runtime import link as former
from dask_ownership.runtime.comm import link


def test_the_number_of_the_protocol_at_its_former_place() -> None:
    with pytest.warns(DeprecationWarning, match=r"runtime\.comm\.link\.PROTOCOL now"):
        assert former.PROTOCOL == link.PROTOCOL
