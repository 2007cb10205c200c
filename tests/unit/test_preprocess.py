from __future__ import annotations

import numpy as np
import pytest
import torch

from firewall.bundle.spec import InputSpec
from firewall.errors import InvalidInput
from firewall.guard.wire_input import WireInput
from firewall.screening.preprocess import check_values, limits, to_wire

SPEC = InputSpec(channels=3, height=8, width=8)

SPECS = [
    InputSpec(channels=3, height=8, width=8),
    InputSpec(channels=3, height=8, width=8, layout="NHWC"),
    InputSpec(channels=3, height=8, width=8, datatype="UINT8", high=255.0, layout="NHWC"),
    InputSpec(channels=3, height=8, width=8, low=-1.0),
    InputSpec(channels=3, height=8, width=8, datatype="FP16"),
    InputSpec(channels=3, height=8, width=8, mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.4)),
    InputSpec(channels=1, height=8, width=8),
]


@pytest.mark.parametrize("spec", SPECS)
def test_pixels_to_wire_to_image_batch_is_the_pixels(spec: InputSpec) -> None:
    """The client's mapping and the graph's are each other's inverse."""
    shape = (4, spec.height, spec.width, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    wire = to_wire(pixels, spec)
    assert wire.shape == (4, *spec.shape)
    check_values(wire, spec, "x")
    x = WireInput(spec)(torch.from_numpy(wire))
    expected = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert torch.allclose(x, expected, atol=1e-3 if spec.datatype == "FP16" else 1e-6)
    assert np.allclose(WireInput(spec).back(x).numpy(), wire, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -0.2])
def test_values_that_are_no_images_are_refused(bad: float) -> None:
    wire = np.full((1, 3, 8, 8), 0.5, np.float32)
    wire[0, 1, 2, 3] = bad
    with pytest.raises(InvalidInput, match="expected"):
        check_values(wire, SPEC, "x")


def test_limits_follow_the_input() -> None:
    assert limits(SPECS[0]) == [(0.0, 1.0)]
    assert limits(SPECS[5])[1] == pytest.approx((-0.456 / 0.3, (1 - 0.456) / 0.3))


def test_no_channel_hides_in_the_range_of_another() -> None:
    """Red may go further up than blue on a normalised wire; blue may not."""
    spec = SPECS[5]
    wire = np.zeros((1, 3, 8, 8), np.float32)
    wire[0, 0] = (1 - 0.485) / 0.2
    check_values(wire, spec, "x")
    wire[0, 2] = (1 - 0.485) / 0.2
    with pytest.raises(InvalidInput, match="in channel 2"):
        check_values(wire, spec, "x")
