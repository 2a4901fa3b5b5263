"""The files of the kernels to upgrade to have the sizes of the kernels' own types."""

from __future__ import annotations

import pytest

from pipeline.collector.model.target_kernels import KERNELS
from tests.lab import kernels, target_kernels
from tests.lab.kernels import LabError

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("name", KERNELS)
def test_a_file_has_the_sizes_of_debians_build(name: str) -> None:
    try:
        _, files = target_kernels.debian_build(name, lambda series: kernels.debian_kernel(series, dwarf=True))
    except LabError as error:
        pytest.skip(f"needs a kernel {name}: {error}")
    assert KERNELS[name]._asdict() == {"name": name, **target_kernels.fields(files)}
