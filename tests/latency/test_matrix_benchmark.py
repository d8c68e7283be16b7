from nas.latency.matrix_benchmark import PEAK_SIZES, measure_noise, measure_peak
from nas.latency.timing import SAMPLES


def test_measure_peak_describes_its_product() -> None:
    peak = measure_peak(1)
    assert peak.gflops > 0
    assert any(
        f"a {size}x{size} float32 matrix product by numpy" in peak.how for size in PEAK_SIZES
    )
    assert "1 thread" in peak.how


def test_measure_noise_returns_a_timing() -> None:
    noise = measure_noise()
    assert len(noise.samples_us) == SAMPLES
    assert noise.spread >= 0
