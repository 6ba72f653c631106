"""Label maps of any shape are drawn."""

import numpy as np
import pytest

from custom.report.drawing import case_panels, draw_panels


@pytest.mark.parametrize("shape", [(1, 12), (12, 1), (1, 1), (2, 2)])
def test_pictures_that_are_a_pixel_wide_are_drawn(shape, tmp_path):
    label = np.zeros(shape, int)
    label.flat[0] = 1
    draw_panels([case_panels(np.random.rand(1, *shape), label, label)]).savefig(tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 0
