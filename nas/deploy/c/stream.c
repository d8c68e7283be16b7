/* Runs a network on images from the standard input, and writes the logits of each.
   RUN is the function of the network; the other names in capitals are its sizes. */

#include <stdio.h>

int RUN(const float *image, float *logits, void *workspace);

static _Alignas(ALIGNMENT) float image[VALUES], logits[CLASSES];
static _Alignas(ALIGNMENT) unsigned char workspace[WORKSPACE_BYTES];

int main(void) {
    while (fread(image, sizeof image, 1, stdin)) {
        if (RUN(image, logits, workspace)) return 1;
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return fflush(stdout) != 0;
}
