// Classify an image with TVM's runtime: classify_tvm model.so IMAGE [--logits]

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <filesystem>

#include "classify.h"

using tvm::ffi::Module;
using tvm::ffi::Tensor;

// Kernels load vectors, which need aligned memory.
struct AlignedMemory {
    static constexpr std::size_t alignment = 64;

    void AllocData(DLTensor* tensor) {
        const std::size_t blocks = tvm::ffi::GetDataSize(*tensor) / alignment + 1;
        tensor->data = std::aligned_alloc(alignment, blocks * alignment);
    }
    void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

std::vector<float> run(const char* model, std::vector<float> image) {
    // The system looks for a name without a folder elsewhere.
    const Module library = Module::LoadFromFile(std::filesystem::absolute(model).string());
    const Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
    const int pooled_allocator = 2;  // That of `tvm.relax.VirtualMachine` in Python.
    machine->GetFunction("vm_initialization").value()(int(kDLCPU), 0, pooled_allocator);

    // The network takes 1 x height x width x channels.
    const Tensor input =
        Tensor::FromNDAlloc(AlignedMemory(), {1, IMAGE_SIZE, IMAGE_SIZE, CHANNELS},
                            DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
    std::copy(image.begin(), image.end(), static_cast<float*>(input.data_ptr()));
    const Tensor output = machine->GetFunction("main").value()(input).cast<Tensor>();
    const float* logits = static_cast<const float*>(output.data_ptr());
    return {logits, logits + output.numel()};
}

int main(int count, char** arguments) { return classify(count, arguments, run); }
