/* The program of a kit: it times kernels and networks on the device that it runs on.

   kit.c       options, the order of all timings, and the checks of the results
   timing.c    samples, the speed of the core, and what follows from them
   device.c    what the system says of the device, and its temperature
   results.c   the file results.jsonl
   items.c     generated: what is timed

   Times are seconds here, and microseconds in the file. */

#ifndef KIT_H
#define KIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { ALIGNMENT = 64, UNIT = ALIGNMENT / sizeof(float) };

/* What is timed: items.c. */

typedef struct {
    uint32_t elements;
    float scale; /* standard deviation of its random numbers; 0 for what the function writes */
} Tensor;

typedef struct {
    int id;
    char part; /* 'k': a candidate of a kernel, 'n': a network, 'd': what the costs of launching
                  follow from, 'w': a chain of kernels with many weights */
    int group; /* candidates of one kernel share it, and are neighbours */
    bool winograd, many_weights;
    const char *name;
    int32_t (*run)(float *const *tensors, int calls); /* 0, or -1 if a function failed */
    int count;                                        /* of the tensors */
    int output;                                       /* number of the tensor that is checked */
    const Tensor *tensors;
} Item;

typedef struct {
    double weighted, absolute; /* sums over the output */
} Sums;

extern const char kit_digest[], kit_program[], kit_target[];
extern const char *const kit_features[]; /* LLVM's names; the last one is NULL */
extern const Item items[];
extern const Sums expected[];
extern const int item_count;

/* Timing: timing.c. */

enum { MAX_ATTEMPTS = 64, MAX_ROUNDS = 24 };

typedef struct {
    double seconds, before, after; /* of a call; readings of the speed before and after */
    bool preempted;
} Attempt;

typedef struct {
    double seconds, reading; /* medians of the samples that count */
} Round;

typedef struct {
    bool failed;
    double quick; /* 0 before it was timed */
    int rounds;
    Round round[MAX_ROUNDS];
} State;

double now(void);
void prepare(const Item *item);
Sums output_sums(const Item *item);
size_t bytes_of(const Item *item);
size_t begin_memory(size_t free_bytes);
double quick_seconds(const Item *item);
int calls_for(const Item *item, double seconds);
int take_attempts(const Item *item, int calls, int samples, Attempt *attempts);
Round round_of(const Attempt *attempts, int count, int samples, double full);
bool is_complete(const State *state, int fewest, double tolerance);
void begin_speed(void);
double full_speed(void);
void know_full_speed(double seconds);

/* The device: device.c. */

typedef struct {
    char processor[256], features[4096], system[300], governor[32];
    int cores;
    long max_khz, memory_mb;
} Device;

void pin(int *core);
void describe(int core, Device *device);
void require_features(void);
size_t free_memory(void);
long clock_khz(int core);
double temperature_c(void);
bool is_hot(int core);
void die(const char *format, ...);

/* The file of results: results.c. */

void wait_for_turn(void);
int open_results(const char *path, State *states);
void write_start(const Device *device, int core);
void write_failed(const Item *item, const char *error);
void write_quick(const Item *item, double seconds);
void write_timing(const Item *item, int round, int calls, const Attempt *attempts, int count);
void write_speed(double seconds);
void write_end(const char *reason, int core);

int samples_of(const Item *item);
bool is_over(void); /* whether a signal or --minutes ends the program after the present sample */

extern const Item *volatile running; /* what runs now, for messages */
extern bool streams; /* whether the standard output gets the lines of the file, too */

#endif
