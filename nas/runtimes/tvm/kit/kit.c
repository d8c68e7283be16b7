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

static volatile sig_atomic_t stop_signal;
const Item *volatile running;

bool streams;

static State *states;
static size_t memory_bytes;
static int core = -1;
static double deadline = INFINITY, began, next_round, next_curve;
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
    const Item *item = running;
    const int length = snprintf(
        text, sizeof text, "\nerror: %s in '%s', which was compiled for %s.\n",
        number == SIGILL ? "the processor lacks an instruction, make a kit for another cpu=; it is"
                         : "a bad access to memory",
        item ? item->name : "the program itself", kit_target);
    if (write(STDERR_FILENO, text, length) < 0) _exit(1);
    _exit(1);
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
    write_speed(full_speed());
    write_end(reason, core);
    fprintf(stderr, "\n%s\n", text);
    exit(status);
}

bool is_over(void) { return stop_signal || now() >= deadline; }

static void wait_until(double time) {
    while (now() < time && !is_over()) {
        const struct timespec pause = {0, (long)(1e9 * fmin(0.5, fmax(0, time - now())))};
        nanosleep(&pause, NULL);
    }
}

/* End the program if it shall end, and wait while the device is too hot. */
static void pause_if_needed(void) {
    static double checked;
    double hot_since = 0;
    do {
        if (stop_signal)
            finish("interrupted", "Stopped; the same command continues.", 1);
        if (now() >= deadline)
            finish("time", "The time is over; the same command continues.", 0);
        if (!hot_since && now() < checked + 1) return;
        checked = now();
        if (!is_hot(core)) return;
        if (!hot_since) {
            hot_since = now();
            fprintf(stderr, "\nThe device is hot (%.0f C): waiting.\n", temperature_c());
        }
        wait_until(now() + 2);
    } while (now() < hot_since + HOT_SECONDS);
    finish("hot", "The device stays hot. Cool it, and start again: it continues.", 1);
}

static void show_progress(const char *name) {
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
    const int own = done - started_done;
    const double left = own ? (shown - began) / own * (steps - done) : 0;
    char text[128];
    snprintf(text, sizeof text, "%d of %d timings, %.0f min left  %.40s", done, steps,
             ceil(left / 60), name);
    fprintf(stderr, terminal ? "\r%-79.79s" : "%s\n", text);
    fflush(stderr);
}

/* Items. */

static State *state_of(const Item *item) { return &states[item - items]; }

int samples_of(const Item *item) { return item->part == 'd' ? 5 : 3; }

/* Return by how much the output differs from the expected one, over its size. */
static double difference_of(const Item *item) {
    const Sums *right = &expected[item - items];
    running = item;
    const Sums own = output_sums(item);
    running = NULL;
    return fmax(fabs(own.weighted - right->weighted), fabs(own.absolute - right->absolute)) /
           right->absolute;
}

static void fail(const Item *item, const char *error) {
    state_of(item)->failed = true;
    write_failed(item, error);
}

static void fail_what_does_not_fit(void) {
    char error[80];
    for (const Item *item = items; item < items + item_count; ++item) {
        if (state_of(item)->failed || bytes_of(item) <= memory_bytes) continue;
        snprintf(error, sizeof error, "it needs %zu MB of memory, and there are %zu",
                 (bytes_of(item) >> 20) + 1, memory_bytes >> 20);
        fail(item, error);
    }
}

/* Check the output of an item, and time it quickly. */
static void check_and_time(const Item *item) {
    State *state = state_of(item);
    char error[80];
    pause_if_needed();
    if (!state->failed && !state->quick) {
        const double difference = difference_of(item);
        if (difference <= CHECK_DIFFERENCE) {
            running = item;
            const double seconds = quick_seconds(item);
            running = NULL;
            pause_if_needed(); /* after a signal, the samples are too few */
            write_quick(item, state->quick = seconds);
        } else {
            snprintf(error, sizeof error, "the output differs by %.2g of its size", difference);
            fail(item, error);
        }
    }
    ++done;
    show_progress(item->name);
}

/* Time an item in one more round. */
static void time_round(const Item *item) {
    Attempt attempts[MAX_ATTEMPTS];
    State *state = state_of(item);
    static double written;
    pause_if_needed();
    ++done;
    if (state->failed || state->rounds == MAX_ROUNDS) return;
    running = item;
    const double seconds = item->part == 'n' ? NETWORK_SAMPLE_SECONDS : SAMPLE_SECONDS;
    int calls = item->part == 'w' ? 1 : calls_for(item, seconds);
    if (item->part == 'd' && calls < LAUNCH_CALLS) calls = LAUNCH_CALLS;
    const int count = take_attempts(item, calls, samples_of(item), attempts);
    running = NULL;
    pause_if_needed();
    if (full_speed() != written) write_speed(written = full_speed());
    write_timing(item, state->rounds, calls, attempts, count);
    state->round[state->rounds++] = round_of(attempts, count, samples_of(item), full_speed());
    show_progress(item->name);
}

/* Time all items of a part in one round. */
static void time_part(char part) {
    for (const Item *item = items; item < items + item_count; ++item)
        if (item->part == part) time_round(item);
}

static int rounds_of(char part) { /* the fewest of all its items; a large number without items */
    int fewest = 1 << 20;
    for (const Item *item = items; item < items + item_count; ++item)
        if (item->part == part && !state_of(item)->failed && state_of(item)->rounds < fewest)
            fewest = state_of(item)->rounds;
    return fewest;
}

static bool curve_is_incomplete(void) {
    for (const Item *item = items; item < items + item_count; ++item)
        if (item->part == 'w' && !state_of(item)->failed &&
            !is_complete(state_of(item), CURVE_ROUNDS, CURVE_DIFFERENCE))
            return true;
    return false;
}

static void time_curve(void) {
    time_part('w');
    next_curve = now() + CURVE_SECONDS;
}

static void begin_round(void) {
    wait_until(next_round);
    next_round = now() + ROUND_SECONDS;
    if (now() >= next_curve && curve_is_incomplete()) time_curve();
}

/* Kernels. */

static bool is_timed_alone(const Item *item) { return item->part == 'k' || item->part == 'n'; }

static const Item *fastest(const Item *first, const Item *end, bool direct) {
    const Item *best = NULL;
    for (const Item *item = first; item < end; ++item)
        if (!state_of(item)->failed && !(direct && item->winograd) &&
            (!best || state_of(item)->quick < state_of(best)->quick))
            best = item;
    return best;
}

static const Item *end_of_group(const Item *item) {
    const int group = item->group;
    while (item < items + item_count && item->group == group) ++item;
    return item;
}

/* Choose what is timed of the candidates of a kernel: the fastest one, and with many weights also
   the fastest one without Winograd's algorithm. Returns how many. */
static int choose(const Item *first, const Item **chosen) {
    const Item *end = end_of_group(first);
    for (const Item *item = first; item < end; ++item) check_and_time(item);
    chosen[0] = fastest(first, end, false);
    if (!chosen[0]) return 0;
    chosen[1] = fastest(first, end, true);
    return 1 + (chosen[1] && chosen[1] != chosen[0] && first->many_weights);
}

static void time_kernels(void) {
    const Item **all = calloc(2 * item_count + 2, sizeof *all);
    if (!all) die("there is no memory");
    int count = 0;
    for (const Item *next = items; next < items + item_count;) {
        const int first = count;
        for (int kernels = 0; kernels < TOGETHER && next < items + item_count; ++kernels) {
            if (is_timed_alone(next)) count += choose(next, all + count);
            next = end_of_group(next);
        }
        for (bool again = true; again;) {
            again = false;
            for (int i = first; i < count; ++i) {
                if (state_of(all[i])->rounds >= FEWEST_ROUNDS) continue;
                if (!again) begin_round();
                again = true;
                time_round(all[i]);
            }
        }
    }
    for (bool again = true; again;) { /* those whose rounds do not agree */
        again = false;
        int incomplete = 0;
        for (int i = 0; i < count; ++i)
            incomplete += !is_complete(state_of(all[i]), FEWEST_ROUNDS, ROUND_DIFFERENCE);
        steps = done + incomplete;
        for (int i = 0; i < count; ++i) {
            if (is_complete(state_of(all[i]), FEWEST_ROUNDS, ROUND_DIFFERENCE)) continue;
            if (!again) begin_round();
            again = true;
            time_round(all[i]);
        }
    }
    free(all);
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
    while (rounds_of('d') < LAUNCH_ROUNDS) {
        time_part('d');
        wait_until(now() + LAUNCH_PAUSE_SECONDS);
    }
    time_kernels();
    while (curve_is_incomplete()) {
        wait_until(next_curve);
        time_curve();
    }
}

/* Options. */

static double option_number(const char *name, const char *text) {
    char *end = NULL;
    const double value = text ? strtod(text, &end) : -1;
    if (!text || end == text || *end || !(value >= 0)) die("%s needs a number from 0 on", name);
    return value;
}

/* Print the sums of all outputs, for the kits of other processors. */
static int print_sums(void) {
    for (const Item *item = items; item < items + item_count; ++item) {
        running = item;
        const Sums sums = output_sums(item);
        printf("%d %.17g %.17g\n", item->id, sums.weighted, sums.absolute);
    }
    return 0;
}

/* Print the outputs that differ. Returns the exit status. */
static int check_all(void) {
    double largest = 0;
    int wrong = 0;
    for (const Item *item = items; item < items + item_count; ++item) {
        const double difference = bytes_of(item) > memory_bytes ? NAN : difference_of(item);
        if (!(difference <= CHECK_DIFFERENCE))
            ++wrong, printf("%d %s differs by %.2g\n", item->id, item->name, difference);
        else
            largest = fmax(largest, difference);
    }
    printf("%d of %d outputs are right; these differ by %.2g at most\n", item_count - wrong,
           item_count, largest);
    return wrong > 0;
}

int main(int count, char **arguments) {
    const char *path = "results.jsonl";
    bool expect = false, check = false;
    double minutes = INFINITY;
    for (int at = 1; at < count; ++at) {
        const char *name = arguments[at], *value = at + 1 < count ? arguments[at + 1] : NULL;
        if (!strcmp(name, "--expected")) {
            expect = true;
        } else if (!strcmp(name, "--check")) {
            check = true;
        } else if (!strcmp(name, "--stream")) {
            streams = true;
        } else if (!strcmp(name, "--core")) {
            core = (int)option_number(name, value), ++at;
        } else if (!strcmp(name, "--minutes")) {
            minutes = option_number(name, value), ++at;
        } else if (!strcmp(name, "--results") && value) {
            path = value, ++at;
        } else {
            fprintf(stderr, "usage: ./%s [--core N] [--minutes M] [--results FILE] [--check] "
                            "[--stream]\n",
                    kit_program);
            return 2;
        }
    }
    handle_signals();
    if (!expect) require_features();
    memory_bytes = begin_memory(expect ? SIZE_MAX / 2 : free_memory());
    if (expect) return print_sums();
    if (check) return check_all();
    states = calloc(item_count + 1, sizeof *states);
    if (!states) die("there is no memory");
    if (streams) wait_for_turn();
    const int wanted = core, earlier = open_results(path, states);
    if (wanted >= 0 && earlier >= 0 && wanted != earlier)
        die("%s is of core %d: use --core %d, or another file with --results", path, earlier,
            earlier);
    if (earlier >= 0) core = earlier;
    pin(&core);
    Device device;
    describe(core, &device);
    write_start(&device, core);
    began = now();
    deadline = began + 60 * minutes;
    begin_speed();
    count_steps();
    time_all();
    finish("done", "Done: take the file of results home.", 0);
}
