// Classify an image with LiteRT: classify_tflite model.tflite IMAGE [--logits]

#include <litert/c/litert_common.h>
#include <litert/c/litert_compiled_model.h>
#include <litert/c/litert_environment.h>
#include <litert/c/litert_model.h>
#include <litert/c/litert_options.h>
#include <litert/c/litert_tensor_buffer.h>

#include <stdexcept>

#include "classify.h"

void check(LiteRtStatus status) {
    if (status != kLiteRtStatusOk)
        throw std::runtime_error("LiteRT refuses it with status " + std::to_string(status));
}

std::vector<float> run(const char* file, std::vector<float> image) {
    LiteRtEnvironment environment;
    LiteRtModel model;
    LiteRtOptions options;
    LiteRtCompiledModel compiled;
    LiteRtSignature signature;
    check(LiteRtCreateEnvironment(0, nullptr, &environment));
    check(LiteRtCreateModelFromFile(environment, file, &model));
    check(LiteRtCreateOptions(&options));
    check(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));
    check(LiteRtCreateCompiledModel(environment, model, options, &compiled));
    check(LiteRtGetModelSignature(model, 0, &signature));

    // One input, 1 x height x width x channels, and one output, the logits.
    LiteRtTensor tensors[2];
    LiteRtTensorBufferRequirements requirements[2];
    LiteRtTensorBuffer buffers[2];
    check(LiteRtGetSignatureInputTensorByIndex(signature, 0, &tensors[0]));
    check(LiteRtGetSignatureOutputTensorByIndex(signature, 0, &tensors[1]));
    check(LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, 0, &requirements[0]));
    check(LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, 0, &requirements[1]));
    for (int i = 0; i < 2; ++i) {
        LiteRtRankedTensorType type;
        check(LiteRtGetRankedTensorType(tensors[i], &type));
        type.layout.dimensions[0] = 1;  // Of any number of images.
        check(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, requirements[i],
                                                              &buffers[i]));
    }
    void* memory;
    check(LiteRtLockTensorBuffer(buffers[0], &memory, kLiteRtTensorBufferLockModeWrite));
    std::copy(image.begin(), image.end(), static_cast<float*>(memory));
    check(LiteRtUnlockTensorBuffer(buffers[0]));
    check(LiteRtRunCompiledModel(compiled, 0, 1, &buffers[0], 1, &buffers[1]));
    check(LiteRtLockTensorBuffer(buffers[1], &memory, kLiteRtTensorBufferLockModeRead));
    const float* values = static_cast<const float*>(memory);
    const std::vector<float> logits(values, values + std::size(CLASSES));
    check(LiteRtUnlockTensorBuffer(buffers[1]));

    for (LiteRtTensorBuffer buffer : buffers) LiteRtDestroyTensorBuffer(buffer);
    LiteRtDestroyCompiledModel(compiled);
    LiteRtDestroyOptions(options);
    LiteRtDestroyModel(model);
    LiteRtDestroyEnvironment(environment);
    return logits;
}

int main(int count, char** arguments) { return classify(count, arguments, run); }
