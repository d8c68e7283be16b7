from nas.describe import table_checks
from nas.latency import TableCheck, Verification
from nas.latency.calibration import fit_calibration
from nas.latency.check_result import CheckedNetwork
from nas.latency.timing import Timing
from nas.latency.verify import VerifiedRow
from tests.describe.small_table import POOL, STEM


def network(predicted: float, measured: float, reference: str | None = None) -> CheckedNetwork:
    timings = (Timing((measured,)), Timing((1.01 * measured,)))
    return CheckedNetwork(
        {"space": "small"}, predicted, timings, reference, uncorrected_us=predicted, launches=10
    )


CHECK = TableCheck(
    (*(network(100 + 9 * n, 110 + 10 * n) for n in range(8)), network(300, 310, "published_net"))
)


def test_check_is_shown_and_drawn(tmp_path, capsys):
    table_checks.show_check(CHECK)
    shown = capsys.readouterr().out
    assert "published_net" in shown
    assert "two halves of the timings of the same network: 1.00% apart" in shown
    assert f"mean error {CHECK.agreement.mape:.2%}" in shown
    assert "of 9 networks, 0 have kernels with unstable timings, 0 have estimated ones" in shown
    assert "is 2.00%: missed" in shown
    table_checks.draw_check(CHECK, "a check", tmp_path / "check.svg")
    picture = (tmp_path / "check.svg").read_text()
    assert "published_net" in picture
    assert "small: 8 random" in picture


def test_show_calibration_prints_errors_without_and_with_it(capsys):
    calibration = fit_calibration(CHECK)
    table_checks.show_calibration(calibration)
    shown = capsys.readouterr().out
    for error in (
        calibration.mape_before,
        calibration.mape_after,
        calibration.references_mape_after,
    ):
        assert f"{error:.2%}" in shown
    assert "published, not fitted on" in shown


def test_show_verification_names_deviating_rows(capsys):
    rows = (
        VerifiedRow(STEM, "conv 3x3", 3.0, 3.9),
        VerifiedRow(POOL, "global_pool", 1.0, None, "RuntimeError: no"),
    )
    table_checks.show_verification(
        Verification(rows, 7, ("governor is powersave, was performance",))
    )
    shown = capsys.readouterr().out
    assert "RuntimeError: no" in shown
    assert "2 of 7 rows timed again, 2 of them off" in shown
    assert "note: governor is powersave" in shown
    assert "The table does not hold: 1 of 2 rows cannot be timed now; rows are 30%" in shown
