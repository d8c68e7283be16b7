// CUDA on a CPU: enough of it to run the kernels that TVM generates, unchanged, without a GPU.
//
// Every thread of a block is a fibre. A barrier suspends a fibre until all others have reached the
// same barrier. A warp shuffle does the same, and then reads the value of the other thread. It is an
// error, which ends the run, when not all threads reach a barrier, and when a thread touches memory
// outside of the tensors. Shared memory is filled with NaNs before each block. Threads can run in
// either order: with a missing barrier, at least one order gives a wrong result.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// g++ takes `alignas` only in front of a declaration, where `__shared__` already is.
#define alignas(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory")))

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

// TVM reads a vector only where it can prove that its offset is a multiple of its width.
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct int2 { int32_t x, y; };
struct int4 { int32_t x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }

// IEEE binary16, rounded to nearest, ties to even.
struct half {
  uint16_t bits;
  half() = default;
  half(float value) : bits(rounded(value)) {}
  half(double value) : half((float)value) {}
  half(int value) : half((float)value) {}
  operator float() const { return widened(bits); }

  __attribute__((noinline)) static uint16_t rounded(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude >= 0x7f800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {
      // Adding this constant makes the hardware round at the last bit of a denormal half.
      float shifted, half_ulp = 0.5f;
      memcpy(&shifted, &magnitude, 4);
      shifted += half_ulp;
      memcpy(&magnitude, &shifted, 4);
      return sign | (magnitude - 0x3f000000);
    }
    magnitude += 0xc8000fff + (magnitude >> 13 & 1);
    return sign | magnitude >> 13;
  }

  __attribute__((noinline)) static float widened(uint16_t bits) {
    uint32_t u = (uint32_t)(bits & 0x7fff) << 13;
    float value;
    if (u >= 0x0f800000) {
      u += 0x70000000;
      memcpy(&value, &u, 4);
    } else {
      memcpy(&value, &u, 4);
      value *= 0x1p112f;
    }
    return bits & 0x8000 ? -value : value;
  }
};
typedef half __half;
struct half2 { half x, y; };
typedef half2 __half2;
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline float __half2float(half x) { return x; }
static inline half __float2half_rn(float x) { return half(x); }
static inline bool __hgt(half a, half b) { return (float)a > (float)b; }
static inline bool __hlt(half a, half b) { return (float)a < (float)b; }

namespace cuda_on_cpu {

// A copy of a tensor between inaccessible pages: it ends, or begins, right beside one of them.
struct Tensor {
  char *pages, *data;
  size_t bytes, mapped;
  void* source;

  Tensor(void* array, size_t size, bool at_the_end) : bytes(size), source(array) {
    size_t page = sysconf(_SC_PAGESIZE), inner = (size + page - 1) / page * page;
    mapped = inner + 2 * page;
    pages = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + page, inner, PROT_READ | PROT_WRITE);
    // Tensors are aligned for the widest vector, so accesses up to 15 bytes behind one go unnoticed.
    data = pages + page + (at_the_end ? (inner - size) & ~(size_t)15 : 0);
    memcpy(data, array, size);
  }
  ~Tensor() {
    memcpy(source, data, bytes);
    munmap(pages, mapped);
  }
};

enum State { RUNNING, BARRIER, SHUFFLE, DONE };

struct Fibre {
  ucontext_t context;
  char* stack;
  State state;
  dim3 index;
  float shuffled[2];
  int parity;
};

static const size_t STACK_BYTES = 64 << 10;
static Fibre* fibres;
static size_t count;
static ucontext_t scheduler;
static Fibre* current;
static void (*kernel)(Tensor**);
static Tensor** arguments;
static sigjmp_buf outside;
static char message[256];

static void suspend(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

static void enter() {
  kernel(arguments);
  current->state = DONE;
  swapcontext(&current->context, &scheduler);
}

static bool run_block(bool reversed) {
  if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
  for (size_t i = 0; i < count; ++i) {
    Fibre& fibre = fibres[i];
    fibre.state = RUNNING;
    fibre.parity = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = STACK_BYTES;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
  }
  for (;;) {
    for (size_t i = 0; i < count; ++i) {
      current = &fibres[reversed ? count - 1 - i : i];
      threadIdx = current->index;
      swapcontext(&scheduler, &current->context);
    }
    for (size_t i = 1; i < count; ++i) {
      if (fibres[i].state != fibres[0].state) {
        snprintf(message, sizeof message, "threads 0 and %zu of block %u,%u,%u diverge: %d and %d", i,
                 blockIdx.x, blockIdx.y, blockIdx.z, fibres[0].state, fibres[i].state);
        return false;
      }
    }
    if (fibres[0].state == DONE) return true;
  }
}

static void on_fault(int, siginfo_t* info, void*) {
  snprintf(message, sizeof message, "block %u,%u,%u thread %u,%u,%u touches %p, outside its tensors",
           blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, info->si_addr);
  siglongjmp(outside, 1);
}

// Runs all blocks. Returns null, or a message about what went wrong.
static const char* launch(const unsigned* blocks, const unsigned* threads, bool reversed,
                          void (*body)(Tensor**), Tensor** tensors) {
  gridDim = {blocks[0], blocks[1], blocks[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  count = (size_t)threads[0] * threads[1] * threads[2];
  fibres = (Fibre*)calloc(count, sizeof(Fibre));
  char* stacks = (char*)malloc(count * STACK_BYTES);
  for (size_t i = 0; i < count; ++i) {
    fibres[i].stack = stacks + i * STACK_BYTES;
    fibres[i].index = {(unsigned)(i % threads[0]), (unsigned)(i / threads[0] % threads[1]),
                       (unsigned)(i / threads[0] / threads[1])};
  }
  kernel = body;
  arguments = tensors;
  struct sigaction caught, segv, bus;
  memset(&caught, 0, sizeof caught);
  caught.sa_sigaction = on_fault;
  caught.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &caught, &segv);
  sigaction(SIGBUS, &caught, &bus);
  bool ok = true;
  if (sigsetjmp(outside, 1)) {
    ok = false;
  } else {
    for (unsigned z = 0; ok && z < blocks[2]; ++z)
      for (unsigned y = 0; ok && y < blocks[1]; ++y)
        for (unsigned x = 0; ok && x < blocks[0]; ++x) {
          blockIdx = {x, y, z};
          ok = run_block(reversed);
        }
  }
  sigaction(SIGSEGV, &segv, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  free(stacks);
  free(fibres);
  return ok ? nullptr : message;
}

}  // namespace cuda_on_cpu

static inline void __syncthreads() { cuda_on_cpu::suspend(cuda_on_cpu::BARRIER); }

static inline float __shfl_xor_sync(unsigned, float value, int lane_mask, int) {
  using namespace cuda_on_cpu;
  Fibre* self = current;
  int parity = self->parity ^= 1;
  self->shuffled[parity] = value;
  suspend(SHUFFLE);
  // The next shuffle writes the other element, so that a slow thread still reads this one.
  return fibres[(self - fibres) ^ lane_mask].shuffled[parity];
}
