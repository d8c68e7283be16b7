// Classify an image with the network of model.o: classify_c model.o IMAGE [--logits]

#include "classify.h"
#include "model.h"

alignas(64) float input[IMAGE_SIZE * IMAGE_SIZE * CHANNELS];
alignas(64) float logits[std::size(CLASSES)];
alignas(64) char workspace[MODEL_WORKSPACE_BYTES];

std::vector<float> run(const char*, std::vector<float> image) {
    std::copy(image.begin(), image.end(), input);
    MODEL_RUN(input, logits, workspace);
    return {std::begin(logits), std::end(logits)};
}

int main(int count, char** arguments) { return classify(count, arguments, run); }
