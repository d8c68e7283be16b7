"""Short trainings of the candidates around the pick, which choose the finalists of a job."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from nas.deploy.retrain import Retraining
from nas.deploy.short_training import train_shortly
from nas.errors import TrainingError, as_nas_error
from nas.files import jsonl
from nas.job import planning
from nas.job.folder import JobRun
from nas.run.candidates import Candidate
from nas.run.front import accuracy_gaps, without_second_dtypes
from nas.run.short_trainings import with_short_trainings


def halve_candidates(run: JobRun, setup: Retraining, pick: Candidate, epoch_s: float) -> None:
    """Train the candidates around the pick of a job for a short time, and correct the front by it.

    The better half is trained again for twice as long, and so on (successive halving, Jamieson and
    Talwalkar 2016): better is who lacks less accuracy to be on the front. Each training starts from
    the supernet's weights, and the search images judge it. An interrupted job continues with the
    trainings that it lacks. A candidate whose training fails keeps its score.

    Args:
        run: the run, whose candidates are timed.
        setup: what networks are trained with; its length is changed.
        pick: what is chosen by the scores.
        epoch_s: seconds of an epoch of the pick.
    """
    jsonl.repair(run.short_training_log)
    for first in run.short_trainings[
        :1
    ]:  # That of the pick before any of them corrected the front.
        pick = run.candidate(first.digest)
    rows = run.trials
    rows = rows[rows["measured_us"].notna() & accuracy_gaps(rows, run.objectives).notna()]
    rows = without_second_dtypes(rows.sort_values("measured_us"))
    order = np.abs(np.log(rows["measured_us"].astype(float) / pick.latency_us)).argsort()
    candidates = rows["digest"].iloc[order].tolist()
    limit_s = planning.finalists_s(run.settings, run.left_s)
    rounds = planning.halving_rounds(run.settings, run.data, len(candidates), epoch_s, limit_s)
    deadline = run.left_s - planning.HALVING_SHARE * limit_s
    for count, epochs in rounds:
        candidates, failed = candidates[:count], set[str]()
        run.progress.begin("short trainings", "network")
        for number, digest in enumerate(candidates):
            known = {(each.digest, each.epochs) for each in run.short_trainings}
            if (digest, epochs) not in known:
                if run.left_s - epochs * epoch_s < deadline:
                    break  # The machine is slower than planned: finalists need the rest.
                start = time.perf_counter()
                try:
                    record = train_shortly(setup, run.architecture(digest), epochs)
                except OSError:  # A full disk would stop the finalists, too.
                    raise
                except Exception as error:
                    message = as_nas_error(error, TrainingError).message
                    run.progress.note(f"a short training of {digest[:8]} failed: {message}")
                    failed.add(digest)
                    continue
                jsonl.append(run.short_training_log, record.model_dump(mode="json", by_alias=True))
                epoch_s = (time.perf_counter() - start) / epochs
            run.progress.advance(number + 1, count, f"{epochs:.3g} epochs")
        corrected = run.write_trials(with_short_trainings(run.trials, run.short_trainings))
        gaps = dict(zip(corrected["digest"], accuracy_gaps(corrected, run.objectives), strict=True))
        candidates = sorted(
            (each for each in candidates if each not in failed), key=gaps.__getitem__
        )
    if lengths := Counter(each.epochs for each in run.short_trainings):
        shortest, longest = min(lengths), max(lengths)
        better = f", the better ones for up to {longest:.3g}" if longest > shortest else ""
        run.progress.note(
            f"{lengths[shortest]} candidates around {pick.id} were trained for {shortest:.3g} "
            f"epochs{better}: they correct the front"
        )
