// Classify an image with ONNX Runtime: classify_onnx model.onnx IMAGE [--logits]

#include <onnxruntime_cxx_api.h>

#include <array>
#include <filesystem>

#include "classify.h"

std::vector<float> run(const char* model, std::vector<float> image) {
    // The network takes 1 x channels x height x width.
    std::vector<float> planes;
    for (int c = 0; c < CHANNELS; ++c)
        for (int i = 0; i < IMAGE_SIZE * IMAGE_SIZE; ++i) planes.push_back(image[i * CHANNELS + c]);

    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "classify");
    environment.DisableTelemetryEvents();
    Ort::Session session(environment, std::filesystem::path(model).c_str(), Ort::SessionOptions());
    const std::array<std::int64_t, 4> shape = {1, CHANNELS, IMAGE_SIZE, IMAGE_SIZE};
    const Ort::Value input = Ort::Value::CreateTensor<float>(
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), planes.data(),
        planes.size(), shape.data(), shape.size());
    const char *input_name = INPUT_NAME, *output_name = OUTPUT_NAME;
    const auto outputs =
        session.Run(Ort::RunOptions(), &input_name, &input, 1, &output_name, 1);
    const float* logits = outputs[0].GetTensorData<float>();
    return {logits, logits + outputs[0].GetTensorTypeAndShapeInfo().GetElementCount()};
}

int main(int count, char** arguments) { return classify(count, arguments, run); }
