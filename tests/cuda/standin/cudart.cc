// libcudart: a device whose memory is host memory between guard bytes. It copies, checks launches, and counts.
// With $STANDIN_COMPUTE=1 it also runs the kernels: what ptx.py made of them lies next to their library. What a GPU or the
// CUDA runtime would refuse, and what is outside an allocation, is noted as an error; standin_report writes all of it to a
// file.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>
#include "standin.h"
#include "thread.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

const size_t MEMORY = standin_setting("STANDIN_MEMORY", STANDIN_BYTES);
const bool COMPUTE = standin_setting("STANDIN_COMPUTE", 0);
constexpr size_t GUARD = 4096;
// A signalling NaN: adding 0.0f makes it quiet, so that an addition of nothing is seen too.
constexpr uint32_t PATTERN = 0x7fa0c0de;

std::map<char*, size_t> device;  // start -> size
std::map<size_t, long> sizes, sizes_at_peak;  // size -> how many allocations have it
size_t used, peak;
std::map<std::string, long> calls;
std::vector<std::string> errors;
thread_local cudaError_t last = cudaSuccess;

cudaError_t refuse(cudaError_t error, const std::string& why) {
    standin_error("%s", why.c_str());
    return last = error;
}

size_t rounded(size_t size) { return (size + GUARD - 1) / GUARD * GUARD; }

// The guards of an allocation: a page before it, and behind it up to the end of the next page.
template <class F>
void each_guard(char* start, size_t size, F f) {
    for (char* p = start - GUARD; p < start; p += 4) f(p);
    for (char* p = start + (size + 3) / 4 * 4; p < start + rounded(size) + GUARD; p += 4) f(p);
}

void check_guards(char* start, size_t size) {
    bool whole = true;
    each_guard(start, size, [&](char* p) { whole = whole && *(uint32_t*)p == PATTERN; });
    if (!whole) standin_error("the guard bytes of an allocation of %zu bytes were written to", size);
}

std::map<char*, size_t>::iterator allocation_of(std::map<char*, size_t>& of, const void* p) {
    auto next = of.upper_bound((char*)p);
    if (next == of.begin()) return of.end();
    --next;
    return (const char*)p < next->first + std::max<size_t>(next->second, 1) ? next : of.end();
}

void forget_known() { std::fill(standin_known, standin_known + KNOWN, Array()); }

std::vector<Array> arrays;  // those that the running operator of Jittor may use; empty: all allocations

// The array at `p`, or the nearest one.
Array nearest(const void* p) {
    const uint64_t at = (uint64_t)p;
    const auto distance = [&](const Array& a) { return at < a.start ? a.start - at : at < a.end ? 0 : at - a.end + 1; };
    Array best{0, 0};
    const auto consider = [&](const Array& a) {
        if (distance(a) < distance(best) || (distance(a) == distance(best) && a.end > best.end)) best = a;
    };
    for (const Array& a : arrays) consider(a);
    if (!arrays.empty() || device.empty()) return best;
    auto next = device.upper_bound((char*)p);
    for (auto it : {next, next == device.begin() ? next : std::prev(next)})
        if (it != device.end()) consider({(uint64_t)it->first, (uint64_t)it->first + it->second});
    return best;
}

cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind, const char* name) {
    Lock lock(mutex);
    standin_count(name);
    if (size == 0) return cudaSuccess;
    const bool to_device = allocation_of(device, to) != device.end();
    const bool from_device = allocation_of(device, from) != device.end();
    const cudaMemcpyKind is = to_device ? (from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                        : (from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
    if (kind != cudaMemcpyDefault && kind != is)
        return refuse(cudaErrorInvalidMemcpyDirection, std::string(name) + " of kind " + std::to_string(kind) + ", but it is " + std::to_string(is));
    const char* names[] = {"bytes host to host", "bytes host to device", "bytes device to host", "bytes device to device"};
    calls[names[is]] += size;
    if (to_device && !standin_inside(to, size, name)) return last = cudaErrorInvalidValue;
    if (from_device && !standin_inside(from, size, name)) return last = cudaErrorInvalidValue;
    memmove(to, from, size);
    return cudaSuccess;
}

// A kernel, and what it needs; nvcc (the script) has written that next to the library.
struct Kernel {
    std::string name;
    int registers = 0, shared = 0;
    size_t threads = 1024;  // at most, in a block
    std::vector<size_t> parameters;  // their sizes
    const Translated* translated = nullptr;
};
struct Module {
    std::map<std::string, Kernel> kernels;
};
std::string running;  // the kernel that runs; empty if it has made an error
std::map<const void*, Kernel> kernels;  // by the function that host code calls
struct Call {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local std::vector<Call> configured;

// The sizes of the arrays whose addresses are among the arguments, or in structures among them: " 4096 128". A kernel that
// gets an array twice reads it once.
std::string arrays_of(const Kernel& kernel, void** arguments) {
    std::string sizes;
    std::vector<char*> seen;
    for (size_t i = 0; i < kernel.parameters.size(); i++)
        for (size_t at = 0; at + sizeof(void*) <= kernel.parameters[i]; at += sizeof(void*)) {
            auto found = allocation_of(device, *(void**)((char*)arguments[i] + at));
            if (found == device.end() || std::count(seen.begin(), seen.end(), found->first)) continue;
            seen.push_back(found->first);
            sizes += " " + std::to_string(found->second);
        }
    return sizes;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t dynamic) {
    Lock lock(mutex);
    auto found = kernels.find(function);
    if (found == kernels.end()) return refuse(cudaErrorInvalidDeviceFunction, "a launch of an unknown kernel");
    const Kernel& kernel = found->second;
    calls["launches"]++;
    calls["launch " + kernel.name + arrays_of(kernel, arguments)]++;
    char text[300];
    snprintf(text, sizeof text, "%.100s<<<(%u, %u, %u), (%u, %u, %u), %zu>>> with %d registers and %d bytes shared",
        kernel.name.c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z, dynamic, kernel.registers, kernel.shared);
    // The limits of compute capability 7.5 to 12.0 (CUDA programming guide, technical specifications).
    const size_t threads = size_t(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return refuse(cudaErrorInvalidConfiguration, std::string("grid: ") + text);
    if (threads == 0 || threads > 1024 || block.z > 64) return refuse(cudaErrorInvalidConfiguration, std::string("block: ") + text);
    if (threads > kernel.threads) return refuse(cudaErrorInvalidValue, std::string("launch bounds: ") + text);
    if (dynamic + kernel.shared > 48 << 10) return refuse(cudaErrorInvalidValue, std::string("shared memory: ") + text);
    const size_t warps = (threads + 127) / 128 * 4, registers = (kernel.registers + 7) / 8 * 8;
    if (warps * 32 * registers > 65536) return refuse(cudaErrorLaunchOutOfResources, std::string("registers: ") + text);
    if (!COMPUTE) return cudaSuccess;
    if (!kernel.translated || dynamic) return refuse(cudaErrorInvalidDeviceFunction, std::string("not translated: ") + text);
    running = kernel.name;
    if (!standin_run(*kernel.translated, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, arguments))
        return refuse(cudaErrorLaunchFailure, std::string("threads wait for others that never come: ") + text);
    return cudaSuccess;
}

}  // namespace

// --- the stand-in's own functions (standin.h)
API void standin_count(const char* name) { Lock lock(mutex); calls[name]++; }

API void standin_error(const char* format, ...) {
    char text[1000];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    Lock lock(mutex);
    errors.push_back(text);
    fprintf(stderr, "stand-in: %s\n", text);
}

API size_t standin_left(const void* p) {
    Lock lock(mutex);
    const Array array = nearest(p);
    return array.holds((uint64_t)p, 1) ? array.end - (uint64_t)p : 0;
}

API bool standin_inside(const void* p, size_t size, const char* what) {
    if (size <= standin_left(p)) return true;
    standin_error("%s: %zu bytes at %p are not in one array on the device", what, size, p);
    return false;
}

API void standin_array(const void* p, size_t size, bool made) {
    Lock lock(mutex);
    if (allocation_of(device, p) == device.end()) return;
    const Array array{(uint64_t)p, (uint64_t)p + size};
    // What was made in place has the values of an input.
    for (const Array& other : arrays) made = made && (array.end <= other.start || other.end <= array.start);
    if (COMPUTE && made) memset((void*)p, 0xff, size);  // NaN, until something is written
    arrays.push_back(array);
}

API void standin_end() {
    Lock lock(mutex);
    arrays.clear();
    forget_known();
}

Array standin_known[KNOWN];

API void* standin_find(const char* instruction, uint64_t address, size_t size) {
    const Array array = nearest((void*)address);
    if (!array.holds(address, size)) return standin_outside(instruction, address - array.start, array);
    standin_known[address / KNOWN_BYTES % KNOWN] = array;
    return (void*)address;
}

API void* standin_outside(const char* instruction, uint64_t at, const Array& array) {
    static double elsewhere[2];
    if (!running.empty())
        standin_error("%s: %s at %p, byte %ld of an array of %ld bytes", running.c_str(), instruction,
            (char*)array.start + at, (long)at, (long)(array.end - array.start));
    running.clear();
    return elsewhere;
}

API void* standin_resolve(const char* library) {
    const std::string real = std::string(library) + ".compiled";
    for (int attempt = 0; attempt < 2; attempt++) {
        std::string compiled, symbol;
        std::ifstream(real) >> compiled >> symbol;
        if (!symbol.empty() && (!COMPUTE || std::ifstream(compiled + ".cpu.so"))) {
            void* handle = dlopen(compiled.c_str(), RTLD_LAZY | RTLD_LOCAL);
            void* run = handle ? dlsym(handle, symbol.c_str()) : nullptr;
            if (!run) standin_error("%s", dlerror());
            return run;
        }
        if (attempt || system((std::string(getenv("STANDIN_COMPILE")) + " '" + library + "'").c_str()) != 0) break;
    }
    standin_error("%s was not compiled", library);
    _exit(1);
}

API void standin_reset() { Lock lock(mutex); calls.clear(); peak = used; sizes_at_peak = sizes; }

API void standin_report(const char* file) {
    Lock lock(mutex);
    for (auto& [start, size] : device) check_guards(start, size);
    std::ofstream out(file);
    out << "used\t" << used << "\npeak\t" << peak << "\n";
    for (auto& [size, count] : sizes_at_peak) out << "allocations at the peak of " << size << "\t" << count << "\n";
    for (auto& [name, count] : calls) out << name << "\t" << count << "\n";
    for (auto& error : errors) out << "error\t" << error << "\n";
}

// --- what nvcc's host code calls
API void** __cudaRegisterFatBinary(void* wrapper) {
    auto* module = new Module;
    Dl_info info{};
    if (dladdr(wrapper, &info) && info.dli_fname) {
        std::ifstream file(std::string(info.dli_fname) + ".kernels");
        for (std::string line; std::getline(file, line);) {
            std::istringstream words(line);
            Kernel kernel;
            words >> kernel.name >> kernel.registers >> kernel.shared >> kernel.threads;
            for (size_t size; words >> size;) kernel.parameters.push_back(size);
            module->kernels[kernel.name] = kernel;
        }
        void* translated = COMPUTE ? dlopen((std::string(info.dli_fname) + ".cpu.so").c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
        auto* entry = translated ? (const Translated*)dlsym(translated, "standin_kernels") : nullptr;
        for (; entry && entry->name; entry++) module->kernels[entry->name].translated = entry;
    }
    return (void**)module;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    Lock lock(mutex);
    auto& known = ((Module*)handle)->kernels;
    Kernel& kernel = kernels[host] = known[name];
    kernel.name = name;
}
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    configured.push_back({grid, block, shared, stream});
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    if (configured.empty()) return refuse(cudaErrorMissingConfiguration, "a launch without configuration");
    const Call call = configured.back();
    configured.pop_back();
    *grid = call.grid;
    *block = call.block;
    *shared = call.shared;
    *(cudaStream_t*)stream = call.stream;
    return cudaSuccess;
}
// Since CUDA 12: a cudaKernel_t, here the function itself.
API cudaError_t __cudaGetKernel(const void** kernel, const void* function) { *kernel = function; return cudaSuccess; }
API cudaError_t __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
    return launch(kernel, grid, block, arguments, shared);
}
API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
    return launch(function, grid, block, arguments, shared);
}

// --- memory
API cudaError_t cudaMalloc(void** p, size_t size) {
    Lock lock(mutex);
    calls["cudaMalloc"]++;
    if (used + size > MEMORY) return refuse(cudaErrorMemoryAllocation, "out of memory");
    char* pages = (char*)mmap(nullptr, rounded(size) + 2 * GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* start = pages + GUARD;
    each_guard(start, size, [](char* at) { *(uint32_t*)at = PATTERN; });
    if (COMPUTE) memset(start, 0xff, size);
    device[start] = size;
    sizes[size]++;
    used += size;
    if (used > peak) {
        peak = used;
        sizes_at_peak = sizes;
    }
    *p = start;
    return cudaSuccess;
}
API cudaError_t cudaFree(void* p) {
    Lock lock(mutex);
    calls["cudaFree"]++;
    if (!p) return cudaSuccess;
    auto found = device.find((char*)p);
    if (found == device.end()) return refuse(cudaErrorInvalidValue, "cudaFree of what was not allocated");
    check_guards(found->first, found->second);
    forget_known();
    used -= found->second;
    if (--sizes[found->second] == 0) sizes.erase(found->second);
    munmap(found->first - GUARD, rounded(found->second) + 2 * GUARD);
    device.erase(found);
    return cudaSuccess;
}
API cudaError_t cudaMallocHost(void** p, size_t size) { standin_count("cudaMallocHost"); *p = malloc(size); return cudaSuccess; }
API cudaError_t cudaFreeHost(void* p) { free(p); return cudaSuccess; }
API cudaError_t cudaMallocManaged(void** p, size_t size, unsigned) { standin_count("cudaMallocManaged"); return cudaMalloc(p, size); }
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) { return copy(to, from, size, kind, "cudaMemcpy"); }
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
    return copy(to, from, size, kind, "cudaMemcpyAsync");
}
API cudaError_t cudaMemset(void* p, int value, size_t size) {
    standin_count("cudaMemset");
    if (!standin_inside(p, size, "cudaMemset")) return last = cudaErrorInvalidValue;
    memset(p, value, size);
    return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t) { return cudaMemset(p, value, size); }
API cudaError_t cudaMemGetInfo(size_t* left, size_t* total) { Lock lock(mutex); *total = MEMORY; *left = MEMORY - used; return cudaSuccess; }

// --- the device
API cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
API cudaError_t cudaGetDevice(int* index) { *index = 0; return cudaSuccess; }
API cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice, "cudaSetDevice"); }
API cudaError_t cudaDeviceReset() { return cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() { standin_count("cudaDeviceSynchronize"); return cudaSuccess; }
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in");
    p->major = 9;
    p->totalGlobalMem = MEMORY;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->multiProcessorCount = 100;
    p->managedMemory = p->concurrentManagedAccess = p->unifiedAddressing = 1;
    return cudaSuccess;
}
API cudaError_t cudaGetLastError() { const cudaError_t error = last; last = cudaSuccess; return error; }
API cudaError_t cudaPeekAtLastError() { return last; }
API const char* cudaGetErrorName(cudaError_t) { return "an error of the stand-in"; }
API const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }

// --- streams and events: everything is done at once, in the order of the calls
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { *stream = (cudaStream_t)malloc(1); return cudaSuccess; }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { standin_count("cudaStreamSynchronize"); return cudaSuccess; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) { function(data); return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t* event) { *event = (cudaEvent_t)malloc(1); return cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 0; return cudaSuccess; }
