// libcuda.so.1 on a CPU, as far as we call it: so that the real bindings, pycuda and cuda-bindings,
// make their real calls, with the arguments as C sees them. "Images" are paths of kernels compiled
// for the emulation. It punishes what a driver would: calls without a context, another stream,
// memory it does not know, and whatever must not happen while a stream is captured.
//
// Numbers and types are those of cuda.h, https://docs.nvidia.com/cuda/cuda-driver-api/.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

enum Result {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, CONTEXT_IS_DESTROYED = 709,
  NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};
using Call = std::function<void()>;
using Calls = std::vector<Call>;
using Address = unsigned long long;

struct Kernel {
  void* library;
  void* function;
  std::string name;
};

// Never destroyed: bindings free memory at the very end of the process.
auto& contexts = *new std::vector<void*>;
auto& memory = *new std::map<Address, size_t>;
auto& host_memory = *new std::map<Address, size_t>;
void* const PRIMARY = reinterpret_cast<void*>(0x1000);
void* const STREAM = reinterpret_cast<void*>(0x77770);
int retained = 0;
Calls* recorded = nullptr;
bool spoilt = false;

Result enqueue(const Call& call) {
  if (recorded) recorded->push_back(call);
  else call();
  return SUCCESS;
}

bool within(Address address, size_t size) {
  auto next = memory.upper_bound(address);
  if (next == memory.begin()) return false;
  const auto& [begin, held] = *--next;
  return address + size <= begin + held;
}

// How many 64-bit arguments a kernel takes: a launch by pointers does not say.
size_t num_arguments(const std::string& name) {
  static const std::map<std::string, size_t> counts = {
      {"begin_block", 3}, {"begin_latents", 3}, {"advance_latents", 3}, {"commit", 3}, {"settle", 3},
      {"append_rows", 7}, {"begin_drafts", 5},
      {"append_kept", 8}, {"propose_float32", 5}, {"propose_float16", 5},
      {"verify_mixed_float32", 6}, {"verify_mixed_float16", 6},
  };
  const auto found = counts.find(name);
  return found == counts.end() ? 4 : found->second;
}

Result refuse_capture(const char* name) {
  std::fprintf(stderr, "libcuda: %s while a stream is captured\n", name);
  spoilt = true;
  return CAPTURE_UNSUPPORTED;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define NEEDS_CONTEXT                          \
  if (contexts.empty()) return INVALID_CONTEXT; \
  if (!retained) return CONTEXT_IS_DESTROYED;
#define NEEDS_STREAM NEEDS_CONTEXT if (stream != STREAM) return INVALID_HANDLE;
#define NO_CAPTURE if (recorded) return refuse_capture(__func__);

API cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
API cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
API cuGetErrorString(int, const char** text) { return *text = "refused", SUCCESS; }
API cuGetErrorName(int, const char** text) { return *text = "REFUSED", SUCCESS; }

API cuDeviceGet(int* device, int ordinal) {
  *device = 0;
  return ordinal ? INVALID_DEVICE : SUCCESS;
}
API cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
API cuDeviceGetName(char* name, int size, int) {
  return std::snprintf(name, size, "Orin (nvgpu)"), SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
  return *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 1, SUCCESS;
}

API cuDeviceComputeCapability(int* major, int* minor, int) {  // pycuda's
  return *major = 8, *minor = 7, SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, int) { return ++retained, *context = PRIMARY, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return --retained, SUCCESS; }
API cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), SUCCESS; }
API cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}
API cuCtxSetCurrent(void* context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(context);
  return SUCCESS;
}
API cuCtxGetDevice(int* device) { NEEDS_CONTEXT return *device = 0, SUCCESS; }

API cuStreamCreate(void** stream, unsigned flags) {
  NEEDS_CONTEXT
  *stream = STREAM;
  return flags == 1 ? SUCCESS : INVALID_VALUE;
}
API cuStreamDestroy_v2(void* stream) { NEEDS_STREAM return SUCCESS; }
API cuStreamSynchronize(void* stream) { NEEDS_STREAM NO_CAPTURE return SUCCESS; }

API cuMemAlloc_v2(Address* address, size_t size) {
  NEEDS_CONTEXT NO_CAPTURE
  if (size > 1u << 30) return OUT_OF_MEMORY;
  void* found = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(found, 0xa5, size);
  *address = reinterpret_cast<Address>(found);
  memory[*address] = size;
  return SUCCESS;
}
API cuMemFree_v2(Address address) {
  NEEDS_CONTEXT NO_CAPTURE
  if (!memory.erase(address)) return INVALID_VALUE;
  return std::free(reinterpret_cast<void*>(address)), SUCCESS;
}
API cuMemHostAlloc(void** address, size_t size, unsigned flags) {
  NEEDS_CONTEXT NO_CAPTURE
  if (flags != 2) return INVALID_VALUE;
  *address = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  std::memset(*address, 0x5a, size);
  host_memory[reinterpret_cast<Address>(*address)] = size;
  return SUCCESS;
}
API cuMemFreeHost(void* address) {
  NEEDS_CONTEXT NO_CAPTURE
  if (!host_memory.erase(reinterpret_cast<Address>(address))) return INVALID_VALUE;
  return std::free(address), SUCCESS;
}
API cuMemHostGetDevicePointer_v2(Address* device, void* address, unsigned flags) {
  NEEDS_CONTEXT
  *device = reinterpret_cast<Address>(address);
  return flags || !host_memory.count(*device) ? INVALID_VALUE : SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Address target, const void* source, size_t size, void* stream) {
  NEEDS_STREAM NO_CAPTURE
  if (!within(target, size)) return INVALID_VALUE;
  return std::memcpy(reinterpret_cast<void*>(target), source, size), SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* target, Address source, size_t size, void* stream) {
  NEEDS_STREAM NO_CAPTURE
  if (!within(source, size)) return INVALID_VALUE;
  return std::memcpy(target, reinterpret_cast<void*>(source), size), SUCCESS;
}
API cuMemcpyDtoDAsync_v2(Address target, Address source, size_t size, void* stream) {
  NEEDS_STREAM
  if (!within(target, size) || !within(source, size)) return INVALID_VALUE;
  return enqueue([=] {
    std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size);
  });
}
API cuMemsetD8Async(Address target, unsigned char value, size_t count, void* stream) {
  NEEDS_STREAM
  if (!within(target, count)) return INVALID_VALUE;
  return enqueue([=] { std::memset(reinterpret_cast<void*>(target), value, count); });
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  NEEDS_CONTEXT
  return *free = size_t{1} << 30, *total = size_t{1} << 33, SUCCESS;
}

API cuModuleLoadData(void** module, const void* image) {
  NEEDS_CONTEXT NO_CAPTURE
  *module = dlopen(static_cast<const char*>(image), RTLD_NOW);
  return *module ? SUCCESS : INVALID_IMAGE;
}
API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(module, image);
}
API cuModuleUnload(void*) { NEEDS_CONTEXT return SUCCESS; }
API cuModuleGetFunction(void** kernel, void* module, const char* name) {
  NEEDS_CONTEXT
  void* function = dlsym(module, name);
  if (!function) return NOT_FOUND;
  return *kernel = new Kernel{module, function, name}, SUCCESS;
}
API cuFuncSetBlockShape(void*, int, int, int) { NEEDS_CONTEXT return SUCCESS; }  // pycuda's
API cuLaunchKernel(Kernel* kernel, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned block,
                   unsigned block_y, unsigned block_z, unsigned shared, void* stream,
                   void** arguments, void** extra) {
  NEEDS_STREAM
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared) return INVALID_VALUE;
  const size_t count = num_arguments(kernel->name);
  std::vector<uint64_t> values(count);
  if (extra) {  // pycuda's way: one packed buffer
    const void* buffer = nullptr;
    size_t size = 0;
    for (; reinterpret_cast<uintptr_t>(*extra) != 0; extra += 2) {
      if (reinterpret_cast<uintptr_t>(*extra) == 1) buffer = extra[1];
      if (reinterpret_cast<uintptr_t>(*extra) == 2) size = *static_cast<size_t*>(extra[1]);
    }
    if (size != 8 * count) return INVALID_VALUE;
    std::memcpy(values.data(), buffer, size);
  } else {
    for (size_t index = 0; index < count; ++index) {
      values[index] = *static_cast<uint64_t*>(arguments[index]);
    }
  }
  using Emulate = int (*)(void*, unsigned, unsigned, const uint64_t*, int, int);
  const auto emulate = reinterpret_cast<Emulate>(dlsym(kernel->library, "emulate"));
  return enqueue([=] {
    emulate(kernel->function, grid, block, values.data(), static_cast<int>(count), 0);
  });
}

API cuStreamBeginCapture_v2(void* stream, int mode) {
  NEEDS_STREAM
  if (mode != 1 || recorded) return INVALID_VALUE;
  return recorded = new Calls, spoilt = false, SUCCESS;
}
API cuStreamEndCapture(void* stream, Calls** graph) {
  NEEDS_STREAM
  *graph = spoilt ? nullptr : recorded;
  recorded = nullptr;
  return spoilt ? CAPTURE_INVALIDATED : SUCCESS;
}
API cuGraphInstantiateWithFlags(Calls** step, Calls* graph, unsigned long long flags) {
  NEEDS_CONTEXT
  return flags ? INVALID_VALUE : (*step = new Calls(*graph), SUCCESS);
}
API cuGraphDestroy(Calls* graph) { return delete graph, SUCCESS; }
API cuGraphExecDestroy(Calls* step) { return delete step, SUCCESS; }
API cuGraphLaunch(Calls* step, void* stream) {
  NEEDS_STREAM
  for (const auto& call : *step) call();
  return SUCCESS;
}

// What cuda-bindings asks for every function.
API cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
  static const std::map<std::string, std::string> renamed = {
      {"cuGraphInstantiate", "cuGraphInstantiateWithFlags"},
  };
  const auto other = renamed.find(name);
  const std::string base = other == renamed.end() ? name : other->second;
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = dlsym(self, (base + "_v2").c_str());
  if (!*function) *function = dlsym(self, base.c_str());
  if (found) *found = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}

// For the stand-in of TensorRT: a run of an engine, in the stream's order.
API enqueue_host_call(void (*call)()) { return enqueue(call); }
API num_allocations() { return static_cast<int>(memory.size() + host_memory.size()); }
