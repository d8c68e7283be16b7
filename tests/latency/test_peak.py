from nas.latency.peak import SIZES, measure_peak


def test_the_peak_says_what_it_is() -> None:
    found = measure_peak(1)
    assert found.gflops > 0
    assert any(f"a {size}x{size} float32 matrix product by numpy" in found.how for size in SIZES)
    assert "1 thread" in found.how
