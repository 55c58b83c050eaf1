"""The generated calibration images: repeatable, and with the statistics of photographs."""

import numpy as np
import pytest

from collab_hf.calibration.default_images import default_images
from collab_hf.calibration.image_parts import blurred, texture
from collab_hf.errors import CalibrationError


def spectral_slope(grey: np.ndarray) -> float:
    """Exponent a of an amplitude spectrum 1/f^a, fitted over frequencies of 3 to 60 waves per image."""
    window = np.outer(np.hanning(len(grey)), np.hanning(len(grey)))  # the borders are no edges
    amplitude = abs(np.fft.fft2((grey - grey.mean()) * window))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(len(grey)), np.fft.fftfreq(len(grey)))) * len(grey)
    rings = np.arange(3, 60)
    mean = [amplitude[(frequency >= ring) & (frequency < ring + 1)].mean() for ring in rings]
    return float(-np.polyfit(np.log(rings), np.log(mean), 1)[0])


def test_the_same_images_at_every_call() -> None:
    first, second = default_images(4, size=64), default_images(5, size=64)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second[:4]]
    assert len({image.tobytes() for image in second}) == 5
    other = default_images(1, size=64, seed=1)
    assert other[0].tobytes() != first[0].tobytes()


@pytest.mark.parametrize("size", [16, 33, 100])
def test_size_and_mode(size: int) -> None:
    for image in default_images(3, size=size):
        assert image.size == (size, size)
        assert image.mode == "RGB"


def test_statistics_are_those_of_photographs() -> None:
    pictures = [np.asarray(image, dtype=np.float64) / 255 for image in default_images(12)]
    slopes = [spectral_slope(pixels.mean(axis=2)) for pixels in pictures]
    assert 0.9 < np.median(slopes) < 1.6  # photographs: 1.2 to 1.3 on average; white noise: 0
    assert np.std(slopes) > 0.1
    assert all(0.05 < pixels.std() < 0.4 for pixels in pictures)
    assert 0.2 < np.mean(pictures) < 0.7
    noise = np.random.default_rng(0).random((256, 256))
    assert abs(spectral_slope(noise)) < 0.1  # negative control


def test_texture_has_the_spectrum_asked_for() -> None:
    rng = np.random.default_rng(0)
    for slope in (0.5, 1.0, 1.5):
        assert spectral_slope(texture((256, 256), slope, rng)) == pytest.approx(slope, abs=0.15)
    assert texture((7, 40), 1, rng).shape == (7, 40)


def test_blur_keeps_the_mean_and_takes_the_contrast() -> None:
    canvas = np.random.default_rng(0).random((32, 32, 3))
    soft = blurred(canvas, 2)
    np.testing.assert_allclose(soft.mean(), canvas.mean(), rtol=1e-6)
    assert soft.std() < 0.3 * canvas.std()
    np.testing.assert_allclose(blurred(np.ones((8, 8, 3)), 1), 1)


def test_counts_and_sizes_out_of_range() -> None:
    with pytest.raises(CalibrationError, match="count >= 1 and size >= 16, got 0 and 256"):
        default_images(0)
    with pytest.raises(CalibrationError, match="got 1 and 8"):
        default_images(1, size=8)
