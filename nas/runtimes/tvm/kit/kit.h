/* The program of a kit: it times kernels and networks on the device that it runs on.

   kit.c       options, the order of all timings, and the checks of the results
   timing.c    samples, the speed of the core, and what follows from them
   device.c    what the system says of the device: texts, cores, temperature and free memory
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
    double weighted, absolute; /* sums over the output */
} Sums;

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
    Sums expected; /* what the output had on the machine that made the kit */
} Item;

extern const char kit_digest[], kit_target[];
extern const Item items[];
extern const int item_count;
extern float *tensor[]; /* those of the item that runs */

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
    bool failed, chosen;
    double quick; /* seconds of a call; 0 before it was timed */
    int rounds;
    Round round[MAX_ROUNDS];
} State;

extern State states[]; /* of the items, in their order */
extern const Item *prepared; /* the item that runs, or the last one that ran */

double now(void);
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
extern double earlier_full; /* the full speed that earlier runs of the program knew */

/* The device: device.c. */

void pin(int *core);
size_t free_memory(void);
bool is_hot(int core);
void add_facts(int core);

/* The file of results: results.c. */

void wait_for_turn(void);
int open_results(void);
void write_line(const char *name, const char *format, ...);
void write_start(int core);
void add_text(const char *name, const char *text); /* a further member of the line */

/* The program: kit.c. */

bool is_over(void); /* whether a signal or --minutes ends the program after the present sample */
void wait_until(double time);
_Noreturn void die(const char *format, ...);

extern bool streams; /* whether the standard output gets the lines of the file, too */

#endif
