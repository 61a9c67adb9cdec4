// The threads of a grid, one after another. Where they wait for each other, each has a stack of its own, and runs until
// it waits: a shuffle is for the threads of a warp, a barrier for those of a block.
#include <sys/mman.h>
#include <ucontext.h>
#include <algorithm>
#include <cfenv>
#include <cstring>
#include <vector>
#include "thread.h"

namespace {

constexpr uint32_t WARP = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 64 << 10;
jmp_buf scheduler;
Thread* starting;
void (*body)(Thread&);

// A thread runs the kernel for one block after another.
void run_thread() {
    Thread& thread = *starting;
    for (;;) {
        standin_wait(thread, Reached::END);
        body(thread);
    }
}

// Continue a thread until it waits.
void resume(Thread& thread) {
    if (!_setjmp(scheduler)) _longjmp(thread.context, 1);
}

void give_stack(Thread& thread, char* stack) {
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, run_thread, 0);
    starting = &thread;
    if (!_setjmp(scheduler)) setcontext(&context);
}

bool all_reached(const std::vector<Thread>& threads, size_t begin, size_t end, Reached what) {
    return std::all_of(&threads[begin], &threads[0] + end, [&](const Thread& t) { return t.reached == what; });
}

// False: threads wait for others that wait for something else, or that have ended.
bool run_block(std::vector<Thread>& threads) {
    const size_t n = threads.size();
    do {
        for (size_t begin = 0; begin < n; begin += WARP) {
            const size_t end = std::min(n, begin + WARP);
            do {
                for (size_t i = begin; i < end; i++) resume(threads[i]);
            } while (all_reached(threads, begin, end, Reached::SHUFFLE));
        }
    } while (all_reached(threads, 0, n, Reached::BARRIER));
    return all_reached(threads, 0, n, Reached::END);
}

}  // namespace

void standin_wait(Thread& thread, Reached reached) {
    thread.reached = reached;
    if (!_setjmp(thread.context)) _longjmp(scheduler, 1);
}

bool standin_run(const Translated& kernel, Index blocks, Index size, void** arguments) {
    static char* stacks = (char*)mmap(
        nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    alignas(16) static char memory[SHARED_ARRAYS][48 << 10];
    Array shared[SHARED_ARRAYS];
    for (uint32_t i = 0; i < SHARED_ARRAYS; i++) shared[i] = {(uint64_t)memory[i], (uint64_t)memory[i] + kernel.shared[i]};
    std::vector<Thread> threads;
    for (uint32_t z = 0; z < size.z; z++)
        for (uint32_t y = 0; y < size.y; y++)
            for (uint32_t x = 0; x < size.x; x++) threads.push_back({{x, y, z}, size, {}, blocks, arguments, shared});
    std::fesetenv(FE_DFL_ENV);  // subnormal numbers count on a GPU; what g++ -Ofast links makes them 0
    body = kernel.run;
    for (size_t i = 0; i < threads.size(); i++) {
        threads[i].warp = &threads[i / WARP * WARP];
        threads[i].lane = i % WARP;
        threads[i].lanes = std::min<size_t>(WARP, threads.size() - (i - i % WARP));
        if (kernel.waits) give_stack(threads[i], stacks + i * STACK);
    }
    Index block;
    for (block.z = 0; block.z < blocks.z; block.z++)
        for (block.y = 0; block.y < blocks.y; block.y++)
            for (block.x = 0; block.x < blocks.x; block.x++) {
                for (const Array& a : shared) memset((void*)a.start, 0xff, a.end - a.start);  // NaN, until a thread writes
                for (Thread& thread : threads) thread.ctaid = block;
                if (!kernel.waits) std::for_each(threads.begin(), threads.end(), kernel.run);
                else if (!run_block(threads)) return false;
            }
    return true;
}
