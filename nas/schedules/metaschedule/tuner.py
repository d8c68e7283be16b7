"""Tune a kernel with MetaSchedule, in this process and without files.

MetaSchedule's own builder and runner start worker processes that exchange libraries as files. Here
candidates are compiled as latency tables compile kernels, and timed as they time them. The tuner
thus optimises what is measured later, and ends with its process.
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
from nas.schedules.metaschedule.trace import TUNER, lower

MAX_POPULATION = 256
"""Largest population of the evolutionary search, which breeds candidates without timing them.

Breeding takes longer than anything else in a generation.
"""

POPULATION_PER_TRIAL = 8
"""Size of the population for each trial: few trials are not worth a large one."""

TRIALS_PER_ROUND = 16
"""Candidates that are timed before the cost model learns from them."""

MAX_INNERMOST_ITERATIONS = 64
"""Largest innermost tile, and most elements that are vectorised together."""

UNROLL_STEPS = (0, 16, 64, 512)
"""Numbers of loop iterations, in all nested loops together, that a candidate may unroll."""

MAX_PARALLEL_PARTS_PER_THREAD = 16
"""Most iterations of a parallel loop for each thread."""

SEED = 1

FAILED_SECONDS = 1e9
"""Latencies from here on mean a failure: MetaSchedule's database stores 1e10 for one."""

QuickUs = Callable[[tirx.PrimFunc], float]
"""Compiles a function, times it briefly, and returns its latency in microseconds."""


def tune(
    kernel: Kernel, trials: int, target: tvm.target.Target, threads: int, quick_latency_us: QuickUs
) -> dict[str, Any]:
    """Return the schedule of the fastest of `trials` candidates.

    Args:
        kernel: a kernel that `definition` accepts.
        trials: number of candidates to compile and time.
        target: target that they are compiled for.
        threads: number of threads that share a parallel loop; with 1, no loop is parallel.
        quick_latency_us: compiles a candidate and returns its latency in microseconds.

    Returns:
        A schedule of `tuner`, `trials` and `trace`, as JSON can hold it.

    Raises:
        MeasurementError: no candidate could be compiled and timed.
        ValueError: the kernel has no definition.
    """
    population = min(MAX_POPULATION, POPULATION_PER_TRIAL * trials)
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=population, init_min_unmeasured=population // 4
    )
    context = _tune_context(definition(kernel), target, threads, strategy)
    timer = _CandidateTimer(quick_latency_us)
    with redirect_stdout(StringIO()):
        database = ms.tune_tasks(
            tasks=[context],
            task_weights=[1.0],
            work_dir="",
            max_trials_global=trials,
            num_trials_per_iter=TRIALS_PER_ROUND,
            builder=timer.builder(),
            runner=timer.runner(),
            database=ms.database.MemoryDatabase(),
            # The default number of warm-up samples is larger than most numbers of trials.
            cost_model=ms.cost_model.XGBModel(
                num_warmup_samples=TRIALS_PER_ROUND, num_tuning_cores=1
            ),
            measure_callbacks=[
                ms.measure_callback.AddToDatabase(),
                ms.measure_callback.UpdateCostModel(),
            ],
            task_scheduler="round-robin",
        )
    records = [
        record
        for record in database.get_all_tuning_records()
        if record.run_secs and float(record.run_secs[0]) < FAILED_SECONDS
    ]
    if not records:
        raise MeasurementError(
            f"none of MetaSchedule's candidates runs ({timer.error or 'it found none'})"
        )
    best = min(records, key=lambda record: float(record.run_secs[0]))
    return {"tuner": TUNER, "trials": trials, "trace": _to_json(best.trace.as_json())}


def _tune_context(
    function: tirx.PrimFunc, target: tvm.target.Target, threads: int, strategy: Any
) -> ms.TuneContext:
    """Return MetaSchedule's description of what to tune."""
    api = ms.tune_context._ffi_api
    # `TuneContext(...)` does the same, but first parses the tensor instructions of all GPUs. That
    # takes half a minute, and the rules for CPUs use none of them.
    context = api.TuneContext(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
        tvm.target.Target({**target.export(), "num-cores": threads}),
        _design_space(threads),
        strategy,
        "kernel",
        1,
        SEED,
        ms.logging.get_logging_func(_silent_logger()),
    )
    api.TuneContextInitialize(context)
    return context


def _design_space(threads: int) -> ms.space_generator.SpaceGenerator:
    """Return TVM's scheduling rules for CPUs; with one thread, without those for parallel loops."""
    rule = ms.schedule_rule
    parts = MAX_PARALLEL_PARTS_PER_THREAD if threads > 1 else -1
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
            *([rule.AddRFactor(parts, MAX_INNERMOST_ITERATIONS)] if threads > 1 else []),
            rule.MultiLevelTiling(
                structure="SSRSRS",
                max_innermost_factor=MAX_INNERMOST_ITERATIONS,
                reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
            ),
            rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=parts,
                max_vectorize_extent=MAX_INNERMOST_ITERATIONS,
                unroll_max_steps=list(UNROLL_STEPS),
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
            **({ms.mutator.MutateParallel(parts): 0.02} if threads > 1 else {}),
        },
    )


class _CandidateTimer:
    """Compile and time MetaSchedule's candidates one by one.

    Attributes:
        error: first line of the last error, or an empty string.
    """

    def __init__(self, quick_latency_us: QuickUs) -> None:
        self._quick_us = quick_latency_us
        self._seconds: list[float | None] = []
        self.error = ""

    def _measure(self, module: tvm.IRModule) -> float | None:
        """Return the latency of a candidate in seconds, or None if it does not run."""
        try:
            return 1e-6 * self._quick_us(lower(module, "main"))
        # A candidate may run into any bug of the compiler; the next candidate need not.
        except Exception as error:
            self.error = first_line(error)
            return None

    def builder(self) -> ms.Builder:
        """Return a builder that also times each candidate.

        What MetaSchedule takes for the path of a compiled library is the candidate's number.
        """
        timer = self

        @derived_object
        class Builder(ms.builder.PyBuilder):
            def build(self, build_inputs: list[Any]) -> list[Any]:
                results = []
                for candidate in build_inputs:
                    timer._seconds.append(timer._measure(candidate.mod))
                    number = str(len(timer._seconds) - 1)
                    results.append(ms.builder.BuilderResult(number, None))
                return results

        return Builder()

    def runner(self) -> ms.Runner:
        """Return a runner that reports what the builder measured."""
        timer = self

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
                return [Future(timer._seconds[int(each.artifact_path)]) for each in runner_inputs]

        return Runner()


def _silent_logger() -> logging.Logger:
    """Return a logger that prints nothing: the result is in the latency table's row."""
    logger = logging.getLogger(f"{__name__}.silent")
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    return logger


def _to_json(value: Any) -> Any:
    """Convert TVM's containers and numbers to Python's, which JSON can hold."""
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_to_json(key): _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value]
