// What the stand-in's libraries share; defined in cudart.cc.
#pragma once
#include <cstddef>
#include <cstdlib>

// Device memory, unless $STANDIN_MEMORY says otherwise.
constexpr size_t STANDIN_BYTES = size_t(24) << 30;
// A number in the environment.
inline size_t standin_setting(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

extern "C" {
// Count a call by its name.
void standin_count(const char* name);
// How many bytes lie between `p` and the end of its allocation on the device; 0 outside.
size_t standin_left(const void* p);
// Whether the `size` bytes at `p` lie in one allocation on the device; if not, an error is noted under `what`.
bool standin_inside(const void* p, size_t size, const char* what);
// Note an error: the test fails.
void standin_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The run function of the operator whose library is `library`: nvcc (the script) left it uncompiled.
void* standin_resolve(const char* library);
// Forget what was counted.
void standin_reset();
// Check the guard bytes of all allocations, and write to a file what was counted, what was allocated at the peak, and all
// errors.
void standin_report(const char* file);
}
