"""Finds the trace of a kernel with MetaSchedule, in this process and without files.

MetaSchedule's own builder and runner start processes that hand over libraries in files. Here
candidates are compiled as tables compile kernels, and timed as tables time them: what is tuned is
what will be measured, and whoever ends this process ends all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from nas.errors import MeasurementError, first_line
from nas.latency.kernel import Kernel
from nas.schedules.metaschedule.definition import definition
from nas.schedules.metaschedule.program import TUNER, lowered

POPULATION = 256
"""Most candidates that one generation breeds without timing them; breeding is what takes long."""

BRED_PER_TRIAL = 8
"""Fewer trials are worth a smaller population."""

BATCH = 16
"""Candidates that are timed before the cost model learns from them."""

INNERMOST = 64
"""Most iterations of an innermost tile, and most elements that are vectorised together."""

UNROLLED = (0, 16, 64, 512)
"""Steps of a loop that a candidate may unroll."""

JOBS_PER_THREAD = 16
"""Most parts that a parallel loop may have for each thread."""

SEED = 1

QuickUs = Callable[[tirx.PrimFunc], float]
"""Compiles a function and takes a first look at its latency, in microseconds."""


def tune(
    kernel: Kernel, trials: int, target: tvm.target.Target, threads: int, quick_us: QuickUs
) -> dict[str, Any]:
    """The schedule of the fastest of `trials` candidates, as JSON can hold it.

    Args:
        kernel: one that `definition` has.
        trials: candidates to compile and time.
        target: what they are compiled for.
        threads: that share a parallel loop; with one, no loop is parallel.
        quick_us: how they are compiled and timed.

    Raises MeasurementError where no candidate can be compiled and timed, ValueError for a kernel
    without a definition.
    """
    population = min(POPULATION, BRED_PER_TRIAL * trials)
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=population, init_min_unmeasured=population // 4
    )
    task = _task(definition(kernel), target, threads, strategy)
    bench = _Bench(quick_us)
    with redirect_stdout(StringIO()):
        database = ms.tune_tasks(
            tasks=[task],
            task_weights=[1.0],
            work_dir="",
            max_trials_global=trials,
            num_trials_per_iter=BATCH,
            builder=bench.builder(),
            runner=bench.runner(),
            database=ms.database.MemoryDatabase(),
            # By default it would start to learn after more candidates than most tune.
            cost_model=ms.cost_model.XGBModel(num_warmup_samples=BATCH, num_tuning_cores=1),
            measure_callbacks=[
                ms.measure_callback.AddToDatabase(),
                ms.measure_callback.UpdateCostModel(),
            ],
            task_scheduler="round-robin",
        )
    records = [each for each in database.get_all_tuning_records() if each.run_secs]
    usable = [each for each in records if float(each.run_secs[0]) < _FAILED_SECONDS]
    if not usable:
        raise MeasurementError(
            f"none of MetaSchedule's candidates runs ({bench.error or 'it found none'})"
        )
    best = min(usable, key=lambda each: float(each.run_secs[0]))
    return {"tuner": TUNER, "trials": trials, "trace": _plain(best.trace.as_json())}


def _task(
    function: tirx.PrimFunc, target: tvm.target.Target, threads: int, strategy: Any
) -> ms.TuneContext:
    """What MetaSchedule is to tune."""
    api = ms.tune_context._ffi_api
    # `TuneContext(...)` does this too, but first parses the tensor instructions of all GPUs, for
    # half a minute, none of which the rules for processors use.
    task = api.TuneContext(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
        tvm.target.Target({**target.export(), "num-cores": threads}),
        _space(threads),
        strategy,
        "kernel",
        1,
        SEED,
        ms.logging.get_logging_func(_silent()),
    )
    api.TuneContextInitialize(task)
    return task


_FAILED_SECONDS = 1e9
"""What MetaSchedule's database has for a candidate that could not be timed; it is 1e10."""


def _space(threads: int) -> ms.space_generator.SpaceGenerator:
    """TVM's rules for processors; with one thread, without parallel loops."""
    rule = ms.schedule_rule
    jobs = JOBS_PER_THREAD if threads > 1 else -1
    return ms.space_generator.PostOrderApply(
        sch_rules=[
            rule.AutoInline(
                into_producer=False,
                into_consumer=True,
                inline_const_tensor=True,
                disallow_if_then_else=True,
                require_injective=True,
                require_ordered=True,
                disallow_op=["tirx.exp"],
            ),
            *([rule.AddRFactor(jobs, INNERMOST)] if threads > 1 else []),
            rule.MultiLevelTiling(
                structure="SSRSRS",
                max_innermost_factor=INNERMOST,
                reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
            ),
            rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=jobs,
                max_vectorize_extent=INNERMOST,
                unroll_max_steps=list(UNROLLED),
                unroll_explicit=True,
            ),
            rule.RandomComputeLocation(),
        ],
        postprocs=[
            ms.postproc.DisallowDynamicLoop(),
            ms.postproc.RewriteParallelVectorizeUnroll(),
            ms.postproc.RewriteReductionBlock(),
        ],
        mutator_probs={
            ms.mutator.MutateTileSize(): 0.9,
            ms.mutator.MutateComputeLocation(): 0.05,
            ms.mutator.MutateUnroll(): 0.03,
            **({ms.mutator.MutateParallel(jobs): 0.02} if threads > 1 else {}),
        },
    )


class _Bench:
    """Compiles and times candidates one by one, for MetaSchedule."""

    def __init__(self, quick_us: QuickUs) -> None:
        self._quick_us = quick_us
        self._seconds: list[float | None] = []
        self.error = ""

    def _time(self, module: tvm.IRModule) -> float | None:
        try:
            return 1e-6 * self._quick_us(lowered(module, "main"))
        # A candidate may run into any of the compiler's bugs; the next one need not.
        except Exception as error:
            self.error = first_line(error)
            return None

    def builder(self) -> ms.Builder:
        """Times each candidate as soon as it is compiled; the name of its file is its number."""
        bench = self

        @derived_object
        class Builder(ms.builder.PyBuilder):
            def build(self, build_inputs: list[Any]) -> list[Any]:
                found = []
                for each in build_inputs:
                    bench._seconds.append(bench._time(each.mod))
                    found.append(ms.builder.BuilderResult(str(len(bench._seconds) - 1), None))
                return found

        return Builder()

    def runner(self) -> ms.Runner:
        """Hands over what the builder found."""
        bench = self

        @derived_object
        class Future(ms.runner.PyRunnerFuture):
            def __init__(self, seconds: float | None) -> None:
                super().__init__()
                self.seconds = seconds

            def done(self) -> bool:
                return True

            def result(self) -> Any:
                if self.seconds is None:
                    return ms.runner.RunnerResult(None, "it does not run")
                return ms.runner.RunnerResult([self.seconds], None)

        @derived_object
        class Runner(ms.runner.PyRunner):
            def run(self, runner_inputs: list[Any]) -> list[Any]:
                return [Future(bench._seconds[int(each.artifact_path)]) for each in runner_inputs]

        return Runner()


def _silent() -> logging.Logger:
    """A logger of which nothing is seen: the table's rows say what was found."""
    logger = logging.getLogger(f"{__name__}.silent")
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    return logger


def _plain(value: Any) -> Any:
    """TVM's containers and numbers as Python's, for JSON."""
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value]
