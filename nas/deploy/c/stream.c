/* Runs a network on images from the standard input, and writes the logits of each.
   With arguments, numbers of calls and of samples, it times the first image instead, and writes the
   seconds of a call in each sample. RUN is the function of the network; the other names in capitals
   are its sizes. */

#include <stdio.h>
#include <stdlib.h>

int RUN(const float *image, float *logits, void *workspace);

void time_calls(const float *image, float *logits, void *workspace, int calls, int samples,
                double *seconds);

static _Alignas(ALIGNMENT) float image[VALUES], logits[CLASSES];
static _Alignas(ALIGNMENT) unsigned char workspace[WORKSPACE_BYTES];

int main(int count, char **arguments) {
    if (count == 3) {
        if (!fread(image, sizeof image, 1, stdin)) return 1;
        for (int sample = 0; sample < atoi(arguments[2]); ++sample) {
            double seconds;
            time_calls(image, logits, workspace, atoi(arguments[1]), 1, &seconds);
            printf("%.9g\n", seconds);
        }
        return fflush(stdout) != 0;
    }
    while (fread(image, sizeof image, 1, stdin)) {
        if (RUN(image, logits, workspace)) return 1;
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return fflush(stdout) != 0;
}
