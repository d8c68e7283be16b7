/* Times a network as the search does: for each sample, the mean of some calls after one call.
   NAME is the function of the network. */

#include <time.h>

int NAME(const float *image, float *logits, void *workspace);

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

void time_calls(const float *image, float *logits, void *workspace, int calls, int samples,
                double *seconds) {
    for (int sample = 0; sample < samples; ++sample) {
        NAME(image, logits, workspace);
        const double start = now();
        for (int call = 0; call < calls; ++call) NAME(image, logits, workspace);
        seconds[sample] = (now() - start) / calls;
    }
}
