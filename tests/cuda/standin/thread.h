// A thread of a grid, as the kernels that ptx.py translated see it, and grid.cc, which runs them.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstring>

struct Index {
    uint32_t x, y, z;
};

// An array, from `start` to before `end`.
struct Array {
    uint64_t start = UINT64_MAX, end = 0;
    // Whether a value of `size` bytes may be at `address`; a GPU reads and writes at multiples of the size only.
    bool holds(uint64_t address, size_t size) const {
        return address >= start && address + size <= end && address % size == 0;
    }
};

// What a thread has reached. A barrier is for all threads of its block, a shuffle for those of its warp.
enum class Reached { BARRIER, SHUFFLE, END };

struct Thread {
    Index tid, ntid, ctaid, nctaid;  // of the thread, of threads, of the block, of blocks
    void** arguments;
    const Array* shared;  // SHARED_ARRAYS
    Array local, indexed;  // indexed: the parameter of the kernel that is used as an array
    // Shuffles: the first thread of the warp, this one's place in it, and how many there are.
    Thread* warp;
    uint32_t lane, lanes;
    // What this thread offers the others, in turn in one of two places, because some of them may be one shuffle ahead.
    uint32_t offered[2];
    unsigned turn;
    bool in_range;
    Reached reached;
    jmp_buf context;

    // The address of a parameter.
    uint64_t parameter(int index, size_t size) {
        indexed = {(uint64_t)arguments[index], (uint64_t)arguments[index] + size};
        return indexed.start;
    }
    void set_local(void* start, size_t size) {
        memset(start, 0xff, size);  // NaN, until the thread writes
        local = {(uint64_t)start, (uint64_t)start + size};
    }
};

// Each array in shared memory has 64 KiB of addresses and lies behind the first 16 of them, so that what is used before or
// behind it is not another one.
constexpr uint32_t SHARED_ARRAYS = 8, SHARED_SLOT = 64 << 10, SHARED_START = 16 << 10;
constexpr uint32_t shared_address(uint32_t array) { return array * SHARED_SLOT + SHARED_START; }

// A translated kernel: its function, whether its threads wait for each other, and the sizes of its arrays in shared memory.
struct Translated {
    const char* name;
    void (*run)(Thread&);
    bool waits;
    size_t shared[SHARED_ARRAYS];
};

// Arrays in device memory that were found before, by the address, of which the lowest bits do not count.
constexpr size_t KNOWN = 4096, KNOWN_BYTES = 512;

extern "C" {
extern Array standin_known[KNOWN];
// The array in device memory that holds `size` bytes at `address`. If there is none, an error is noted, and the result is
// an array at another address that can be used instead.
void* standin_find(const char* instruction, uint64_t address, size_t size);
// Note that an instruction uses what is not in an array of shared or local memory; returns memory to use instead.
void* standin_outside(const char* instruction, uint64_t at, const Array& array);
// Return when the threads concerned have reached the same.
void standin_wait(Thread& thread, Reached reached);
// Run a kernel: for each block, all its threads. False: its threads wait for others that never come.
bool standin_run(const Translated& kernel, Index blocks, Index threads, void** arguments);
}
