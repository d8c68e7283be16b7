/* Samples of a function, and the speed of the core beside them. The method and its constants are
   those of nas/latency/timing.py and nas/latency/core_speed.py. */

#define _GNU_SOURCE

#include "kit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static const double QUICK_SAMPLE_SECONDS = 2e-4, RAMP_SECONDS = 8e-3, WAIT_SECONDS = 10,
                    TOLERANCE = 0.05;
enum { QUICK_SAMPLES = 5, ATTEMPTS_PER_SAMPLE = 5, ROUNDS_PER_OUTLIER = 8 };

double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static int ascending(const void *one, const void *other) {
    const double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double median(double *values, int count) {
    qsort(values, count, sizeof *values, ascending);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

/* Tensors. All items share one memory, in which their tensors lie one after the other. */

static float *memory;
const Item *prepared;

static size_t places(const Tensor *each) { return (each->elements + UNIT - 1) / UNIT * UNIT; }

size_t bytes_of(const Item *item) {
    size_t floats = 0;
    for (int at = 0; at < item->count; ++at) floats += places(&item->tensors[at]);
    return floats * sizeof(float);
}

/* Allocate the memory of the largest item that fits into what is free, and return its size. */
size_t begin_memory(size_t free_bytes) {
    for (size_t limit = free_bytes; limit >= ALIGNMENT;) {
        size_t most = ALIGNMENT;
        for (const Item *item = items; item < items + item_count; ++item)
            if (bytes_of(item) > most && bytes_of(item) <= limit) most = bytes_of(item);
        if ((memory = aligned_alloc(ALIGNMENT, most))) return most;
        limit = most - 1; /* a limit of the process is smaller than what is free */
    }
    die("there is no memory for the tensors");
}

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

static float centred(uint32_t random) { /* from -1 to 1, the same on every processor */
    return (float)((int32_t)(random >> 8) - (1 << 23)) * (1.0f / (1 << 23));
}

/* Fill the tensors of an item with random numbers, which are the same on every device. */
static void prepare(const Item *item) {
    if (prepared == item) return;
    uint32_t state = 1;
    float *next = memory;
    for (int at = 0; at < item->count; ++at) {
        const Tensor *each = &item->tensors[at];
        const float factor = each->scale * 1.7320508f; /* of a uniform distribution */
        tensor[at] = next;
        for (uint32_t i = 0; i < each->elements; ++i)
            next[i] = each->scale ? factor * centred(next_random(&state)) : 0;
        next += places(each);
    }
    prepared = item;
}

/* Call an item once, and return the sums of its output. */
Sums output_sums(const Item *item) {
    Sums sums = {NAN, NAN};
    prepare(item);
    if (item->run(tensor, 1)) return sums;
    const Tensor *output = &item->tensors[item->output];
    uint32_t state = 2;
    sums.weighted = sums.absolute = 0;
    for (uint32_t i = 0; i < output->elements; ++i) {
        const double value = tensor[item->output][i];
        sums.weighted += value * centred(next_random(&state));
        sums.absolute += fabs(value);
    }
    return sums;
}

/* The speed of the core: products of matrices, which always take the same work. */

enum { SIDE = 64, PRODUCTS = 2, FIRST_READINGS = 50, BLOCKS = 60, MAX_BLOCK = 4096 };

static float matrix[SIDE][SIDE], product[SIDE][SIDE];
static double block[MAX_BLOCK], block_end, full[BLOCKS], was_full_at;
double earlier_full = INFINITY;
static int block_count, full_count;

static void multiply(void) {
    for (int i = 0; i < SIDE; ++i) {
        float row[SIDE] = {0};
        for (int k = 0; k < SIDE; ++k)
            for (int j = 0; j < SIDE; ++j) row[j] += matrix[i][k] * matrix[k][j];
        memcpy(product[i], row, sizeof row);
    }
    __asm__ volatile("" : : "r"(product) : "memory"); /* so that no call is left out */
}

/* Return the duration of a reading at full speed: the fastest of the latest blocks of readings, and
   of earlier runs of the program; INFINITY before it is known. */
double full_speed(void) {
    double fastest = earlier_full;
    for (int i = 0; i < BLOCKS && i < full_count; ++i) fastest = fmin(fastest, full[i]);
    return fastest;
}

/* Return the fastest reading until the core is at full speed, or has had the time to get there. */
static double read_speed(void) {
    if (!matrix[0][0])
        for (int i = 0; i < SIDE * SIDE; ++i) matrix[i / SIDE][i % SIDE] = 0.5f;
    const double last = now() + RAMP_SECONDS, known = full_speed();
    double fastest = INFINITY, end = 0;
    int count = 0;
    while (end < last && (isinf(known) || fastest > (1 + TOLERANCE) * known)) {
        multiply();
        const double start = now();
        for (int i = 0; i < PRODUCTS; ++i) multiply();
        end = now();
        fastest = fmin(fastest, end - start);
        ++count;
    }
    /* One that ends while the core still becomes faster does not tell what full speed is. */
    if (block_count < MAX_BLOCK && (count == 1 || end >= last)) block[block_count++] = fastest;
    if (block_count >= FIRST_READINGS && end >= block_end) {
        qsort(block, block_count, sizeof *block, ascending);
        full[full_count++ % BLOCKS] = block[block_count / 20];
        block_count = 0;
        block_end = now() + 0.5;
    }
    return fastest;
}

/* Take the first readings. */
void begin_speed(void) {
    while (!full_count && !is_over()) read_speed();
}

static bool is_full(double before, double after) {
    const bool yes = fmax(before, after) <= (1 + TOLERANCE) * full_speed();
    if (yes || !was_full_at) was_full_at = now();
    return yes;
}

/* Samples. */

static double call_seconds(const Item *item, int calls) {
    item->run(tensor, 1);
    const double start = now();
    item->run(tensor, calls);
    return (now() - start) / calls;
}

static long preemptions(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nivcsw;
}

/* Return the number of calls that take so many seconds. */
int calls_for(const Item *item, double seconds) {
    prepare(item);
    double once = INFINITY;
    for (int i = 0; i < 3 && !(i && is_over()); ++i) once = fmin(once, call_seconds(item, 1));
    return once > 0 ? (int)fmin(1e9, fmax(1, ceil(seconds / once))) : 1000;
}

/* Take samples, each between two readings of the speed, until enough are undisturbed.

   If none is after ATTEMPTS_PER_SAMPLE attempts at each, wait for the core to be at full speed, but
   not longer than WAIT_SECONDS. Returns the number of attempts. */
int take_attempts(const Item *item, int calls, int samples, Attempt *attempts) {
    prepare(item);
    int count = 0, undisturbed = 0, most = ATTEMPTS_PER_SAMPLE * samples;
    double before = read_speed();
    while (count < most && undisturbed < samples && !(count && is_over())) {
        Attempt *each = &attempts[count++];
        const long preempted = preemptions();
        each->before = before;
        each->seconds = call_seconds(item, calls);
        each->preempted = preemptions() != preempted;
        before = each->after = read_speed();
        undisturbed += is_full(each->before, each->after) && !each->preempted;
        if (count < ATTEMPTS_PER_SAMPLE * samples || undisturbed) continue;
        while (!is_full(before, before) && now() - was_full_at < WAIT_SECONDS && !is_over()) {
            before = read_speed();
        }
        if (is_full(before, before) && most + samples <= MAX_ATTEMPTS) most += samples;
    }
    return count;
}

/* Return what the samples say that count: the undisturbed ones; the fastest if there is none. */
Round round_of(const Attempt *attempts, int count, int samples, double full_seconds) {
    double seconds[MAX_ATTEMPTS], readings[MAX_ATTEMPTS];
    Attempt sorted[MAX_ATTEMPTS];
    int chosen = 0;
    for (int i = 0; i < count && chosen < samples; ++i) {
        const double reading = fmax(attempts[i].before, attempts[i].after);
        if (reading > (1 + TOLERANCE) * full_seconds || attempts[i].preempted) continue;
        seconds[chosen] = attempts[i].seconds;
        readings[chosen++] = reading;
    }
    if (!chosen) {
        memcpy(sorted, attempts, count * sizeof *attempts);
        qsort(sorted, count, sizeof *sorted, ascending); /* seconds are the first member */
        for (; chosen < samples && chosen < count; ++chosen) {
            seconds[chosen] = sorted[chosen].seconds;
            readings[chosen] = fmax(sorted[chosen].before, sorted[chosen].after);
        }
    }
    const Round round = {median(seconds, chosen), median(readings, chosen)};
    return round;
}

/* Return the seconds of a call from few and short samples, to choose between candidates. */
double quick_seconds(const Item *item) {
    Attempt attempts[MAX_ATTEMPTS];
    const int calls = calls_for(item, QUICK_SAMPLE_SECONDS);
    const int count = take_attempts(item, calls, QUICK_SAMPLES, attempts);
    return round_of(attempts, count, QUICK_SAMPLES, full_speed()).seconds;
}

/* Return whether an item needs no further round: see Latency.is_complete in
   nas/latency/rounds.py. */
bool is_complete(const State *state, int fewest, double tolerance) {
    double at_full_speed[MAX_ROUNDS];
    int count = 0;
    if (state->rounds >= MAX_ROUNDS) return true;
    for (int i = 0; i < state->rounds; ++i)
        if (state->round[i].reading <= (1 + TOLERANCE) * full_speed())
            at_full_speed[count++] = state->round[i].seconds;
    const int first = count / ROUNDS_PER_OUTLIER;
    if (count < fewest || count < first + 2) return false;
    qsort(at_full_speed, count, sizeof *at_full_speed, ascending);
    return at_full_speed[first + 1] <= (1 + tolerance) * at_full_speed[first];
}
