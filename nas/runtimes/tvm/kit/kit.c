/* The program of a kit: options, the order of all timings, and the checks of the results. */

#define _GNU_SOURCE

#include "kit.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The constants of nas/latency/build.py, differences.py, rounds.py and timing.py. */

enum { TOGETHER = 48, FEWEST_ROUNDS = 4, LAUNCH_ROUNDS = 18, CURVE_ROUNDS = 12, LAUNCH_CALLS = 100 };

static const double ROUND_SECONDS = 0.5, LAUNCH_PAUSE_SECONDS = 0.1, CURVE_SECONDS = 10,
                    SAMPLE_SECONDS = 1e-3, NETWORK_SAMPLE_SECONDS = 2e-3,
                    ROUND_DIFFERENCE = 0.03, CURVE_DIFFERENCE = 0.1;

/* Largest difference of the sums of an output from the expected ones, over the sum of the absolute
   values: rounding errors of other processors are smaller by a factor of ten at least. */
static const double CHECK_DIFFERENCE = 1e-4;
static const double HOT_SECONDS = 300, PROGRESS_LINE_SECONDS = 60;

bool streams;
static volatile sig_atomic_t stop_signal;
static size_t memory_bytes;
static int core = -1;
static double deadline = INFINITY, began;
static int done, steps, started_done;

void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "\nerror: ");
    vfprintf(stderr, format, values);
    fprintf(stderr, ".\n");
    va_end(values);
    exit(1);
}

/* Signals. */

static void note_signal(int number) { stop_signal = number; }

static void report_crash(int number) {
    char text[512];
    const int length = snprintf(
        text, sizeof text, "\nerror: %s in '%s', which was compiled for %s.\n",
        number == SIGILL ? "the processor lacks an instruction, make a kit for another cpu=; it is"
                         : "a bad access to memory",
        prepared ? prepared->name : "the program itself", kit_target);
    _exit(write(STDERR_FILENO, text, length) < 0 ? 2 : 1);
}

static void handle_signals(void) {
    struct sigaction stop = {.sa_handler = note_signal}, crash = {.sa_handler = report_crash};
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP}, crashes[] = {SIGILL, SIGSEGV, SIGBUS};
    for (int i = 0; i < 3; ++i) {
        struct sigaction before;
        sigaction(stops[i], NULL, &before);
        if (before.sa_handler != SIG_IGN) sigaction(stops[i], &stop, NULL);
        sigaction(crashes[i], &crash, NULL);
    }
}

/* Ends of the program, and what it waits for. */

static void finish(const char *reason, const char *text, int status) {
    write_line("end", ",\"reason\":\"%s\"", reason);
    fprintf(stderr, "\n%s\n", text);
    exit(status);
}

bool is_over(void) { return stop_signal || now() >= deadline; }

static void finish_if_over(void) {
    if (stop_signal) finish("interrupted", "Stopped; the same command continues.", 1);
    if (is_over()) finish("time", "The time is over; the same command continues.", 0);
}

void wait_until(double time) {
    while (now() < time && !is_over()) {
        const struct timespec pause = {0, (long)(1e9 * fmin(0.5, fmax(0, time - now())))};
        nanosleep(&pause, NULL);
    }
}

/* End the program if it shall end, and wait while the device is too hot. */
static void pause_if_needed(void) {
    static double checked;
    const double since = now();
    finish_if_over();
    if (since < checked + 1) return;
    for (bool waits = false; is_hot(core); waits = true) {
        if (!waits) fprintf(stderr, "\nThe device is hot: waiting.\n");
        wait_until(now() + 2);
        finish_if_over();
        if (now() >= since + HOT_SECONDS)
            finish("hot", "The device stays hot. Cool it, and start again: it continues.", 1);
    }
    checked = now();
}

static void show_progress(void) {
    static double shown;
    const bool terminal = isatty(STDERR_FILENO);
    if (now() < shown + (streams ? 1 : terminal ? 0.2 : PROGRESS_LINE_SECONDS)) return;
    shown = now();
    if (steps < done) steps = done; /* the last timings are repeated until they agree */
    if (streams) {
        printf("{\"line\":\"progress\",\"done\":%d,\"of\":%d}\n", done, steps);
        if (fflush(stdout)) exit(1);
        return;
    }
    const double minutes_each = (shown - began) / 60 / fmax(1, done - started_done);
    fprintf(stderr, "%s%d of %d timings, %.0f min left%s", terminal ? "\r" : "", done, steps,
            ceil(minutes_each * (steps - done)), terminal ? "   " : "\n");
}

/* Items. */

static State *state_of(const Item *item) { return &states[item - items]; }

static int samples_of(const Item *item) { return item->part == 'd' ? 5 : 3; }

/* Return by how much the output differs from the expected one, over its size. */
static double difference_of(const Item *item) {
    const Sums *right = &item->expected, own = output_sums(item);
    return fmax(fabs(own.weighted - right->weighted), fabs(own.absolute - right->absolute)) /
           right->absolute;
}

static void fail(const Item *item, const char *format, ...) {
    char error[80];
    va_list values;
    va_start(values, format);
    vsnprintf(error, sizeof error, format, values);
    va_end(values);
    state_of(item)->failed = true;
    write_line("failed", ",\"item\":%d,\"error\":\"%s\"", item->id, error);
}

static void fail_what_does_not_fit(void) {
    for (const Item *item = items; item < items + item_count; ++item)
        if (!state_of(item)->failed && bytes_of(item) > memory_bytes)
            fail(item, "it needs %zu MB of memory, and there are %zu", (bytes_of(item) >> 20) + 1,
                 memory_bytes >> 20);
}

/* Check the output of an item, and time it quickly. */
static void check_and_time(const Item *item) {
    State *state = state_of(item);
    pause_if_needed();
    ++done;
    if (state->failed || state->quick) return;
    const double difference = difference_of(item);
    if (!(difference <= CHECK_DIFFERENCE)) {
        fail(item, "the output differs by %.2g of its size", difference);
    } else {
        state->quick = quick_seconds(item);
        finish_if_over(); /* after a signal, the samples are too few */
        write_line("quick", ",\"item\":%d,\"us\":%.6g", item->id, state->quick * 1e6);
    }
    show_progress();
}

static void write_timing(const Item *item, Round round, int calls, const Attempt *attempts,
                         int count) {
    char text[MAX_ATTEMPTS * 64];
    size_t used = 0;
    for (int i = 0; i < count; ++i)
        used += snprintf(text + used, sizeof text - used, "%s[%.6g,%.6g,%.6g,%d]", i ? "," : "",
                         attempts[i].seconds * 1e6, attempts[i].before * 1e6,
                         attempts[i].after * 1e6, attempts[i].preempted);
    write_line("timing", ",\"item\":%d,\"round\":%d,\"calls\":%d,\"us\":%.6g,\"reading_us\":%.6g,"
               "\"full_us\":%.6g,\"attempts\":[%s]", item->id, state_of(item)->rounds, calls,
               round.seconds * 1e6, round.reading * 1e6, full_speed() * 1e6, text);
}

/* Time an item in one more round. */
static void time_round(const Item *item) {
    Attempt attempts[MAX_ATTEMPTS];
    State *state = state_of(item);
    pause_if_needed();
    ++done;
    if (state->failed || state->rounds == MAX_ROUNDS) return;
    const double seconds = item->part == 'n' ? NETWORK_SAMPLE_SECONDS : SAMPLE_SECONDS;
    int calls = item->part == 'w' ? 1 : calls_for(item, seconds);
    if (item->part == 'd' && calls < LAUNCH_CALLS) calls = LAUNCH_CALLS;
    const int count = take_attempts(item, calls, samples_of(item), attempts);
    finish_if_over();
    const Round round = round_of(attempts, count, samples_of(item), full_speed());
    write_timing(item, round, calls, attempts, count);
    state->round[state->rounds++] = round;
    show_progress();
}

static bool needs_round(const Item *item) {
    const State *state = state_of(item);
    if (state->failed) return false;
    if (item->part == 'd') return state->rounds < LAUNCH_ROUNDS;
    if (item->part == 'w') return !is_complete(state, CURVE_ROUNDS, CURVE_DIFFERENCE);
    return !is_complete(state, FEWEST_ROUNDS, ROUND_DIFFERENCE);
}

static bool part_needs_round(char part) {
    for (const Item *item = items; item < items + item_count; ++item)
        if (item->part == part && needs_round(item)) return true;
    return false;
}

/* Time all items of a part in one more round. */
static void time_part(char part) {
    for (const Item *item = items; item < items + item_count; ++item)
        if (item->part == part) time_round(item);
}

/* Wait for the time of the next round. The miss curve is timed in between, and more rarely. */
static void begin_round(void) {
    static double next_round, next_curve;
    wait_until(next_round);
    next_round = now() + ROUND_SECONDS;
    if (now() < next_curve || !part_needs_round('w')) return;
    time_part('w');
    next_curve = now() + CURVE_SECONDS;
}

/* Kernels and networks. */

static bool is_timed_alone(const Item *item) { return item->part == 'k' || item->part == 'n'; }

static const Item *end_of_group(const Item *item) {
    const int group = item->group;
    while (item < items + item_count && item->group == group) ++item;
    return item;
}

/* Choose the fastest candidate of a kernel, or the fastest without Winograd's algorithm. */
static void choose(const Item *first, const Item *end, bool direct) {
    const Item *best = NULL;
    for (const Item *item = first; item < end; ++item)
        if (!state_of(item)->failed && !(direct && item->winograd) &&
            (!best || state_of(item)->quick < state_of(best)->quick))
            best = item;
    if (best) state_of(best)->chosen = true;
}

/* Time chosen items in one more round. Returns whether any needed one.

   Each gets the fewest rounds first; `until_they_agree` is for those that remain at the end. */
static bool time_chosen(const Item *first, const Item *end, bool until_they_agree) {
    bool any = false;
    for (const Item *item = first; item < end; ++item) {
        if (!state_of(item)->chosen) continue;
        if (until_they_agree ? !needs_round(item) : state_of(item)->rounds >= FEWEST_ROUNDS)
            continue;
        if (!any) begin_round();
        any = true;
        time_round(item);
    }
    return any;
}

static void time_kernels(void) {
    for (const Item *next = items; next < items + item_count;) {
        const Item *first = next;
        for (int kernels = 0; kernels < TOGETHER && next < items + item_count; ++kernels) {
            const Item *group = next;
            next = end_of_group(group);
            if (!is_timed_alone(group)) continue;
            for (const Item *item = group; item < next; ++item) check_and_time(item);
            choose(group, next, false);
            if (group->many_weights) choose(group, next, true);
        }
        while (time_chosen(first, next, false)) {}
    }
    while (time_chosen(items, items + item_count, true)) {}
}

static void count_steps(void) {
    for (const Item *item = items; item < items + item_count; ++item) {
        const bool is_first = item == items || item[-1].group != item->group;
        steps += 1 + (item->part == 'd') * LAUNCH_ROUNDS + (item->part == 'w') * CURVE_ROUNDS +
                 (is_timed_alone(item) && is_first) * FEWEST_ROUNDS;
        done += state_of(item)->rounds;
    }
    started_done = done;
}

static void time_all(void) {
    fail_what_does_not_fit();
    for (const Item *item = items; item < items + item_count; ++item)
        if (!is_timed_alone(item)) check_and_time(item);
    while (part_needs_round('d')) {
        time_part('d');
        wait_until(now() + LAUNCH_PAUSE_SECONDS);
    }
    time_kernels();
    while (part_needs_round('w')) begin_round();
}

static double option_number(const char *name, const char *text) {
    double value;
    char rest;
    if (!text || sscanf(text, "%lf%c", &value, &rest) != 1 || !(value >= 0))
        die("%s needs a number from 0 on", name);
    return value;
}

/* Print the sums of all outputs, for the kits of other processors. */
static int print_sums(void) {
    for (const Item *item = items; item < items + item_count; ++item) {
        const Sums sums = output_sums(item);
        printf("%d %.17g %.17g\n", item->id, sums.weighted, sums.absolute);
    }
    return 0;
}

int main(int count, char **arguments) {
    bool expect = false;
    double minutes = INFINITY;
    for (int at = 1; at < count; ++at) {
        const char *name = arguments[at], *value = at + 1 < count ? arguments[at + 1] : NULL;
        if (!strcmp(name, "--expected")) {
            expect = true;
        } else if (!strcmp(name, "--stream")) {
            streams = true;
        } else if (!strcmp(name, "--core")) {
            core = (int)fmin(1e6, option_number(name, value)), ++at;
        } else if (!strcmp(name, "--minutes")) {
            minutes = option_number(name, value), ++at;
        } else {
            fprintf(stderr, "usage: %s [--core N] [--minutes M] [--stream]\n", arguments[0]);
            return 2;
        }
    }
    handle_signals();
    memory_bytes = begin_memory(expect ? SIZE_MAX / 2 : free_memory());
    if (expect) return print_sums();
    if (streams) wait_for_turn();
    const int earlier = open_results();
    if (core >= 0 && earlier >= 0 && core != earlier)
        die("results.jsonl is of core %d: use --core %d, or move it away", earlier, earlier);
    if (earlier >= 0) core = earlier;
    pin(&core);
    write_start(core);
    began = now();
    deadline = began + 60 * minutes;
    begin_speed();
    count_steps();
    time_all();
    finish("done", "Done: take the file of results home.", 0);
}
