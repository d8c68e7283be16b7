"""`nas quickstart` where its budget is too short."""

import pytest

from nas import job
from nas.cli import runs
from nas.errors import BudgetError


def test_quickstart_takes_the_smallest_budget_that_works(monkeypatch, capsys, tmp_path):
    budgets = []

    def run_job(settings, folder, **others):
        budgets.append(settings.budget)
        raise BudgetError("too short", remedy="", smallest="8m")

    monkeypatch.setattr(job, "run_job", run_job)
    with pytest.raises(BudgetError):
        runs.quickstart(tmp_path)
    assert budgets == ["5m", "8m"], "it is raised once, to what works"
    assert (
        "5m are too short for its latency table. The quickstart gets 8m" in capsys.readouterr().err
    )
