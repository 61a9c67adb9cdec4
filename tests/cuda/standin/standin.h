// What the stand-in's libraries share; defined in cudart.cc.
#pragma once
#include <cstddef>
extern "C" {
// Count a call by its name.
void standin_count(const char* name);
// Whether the `size` bytes at `p` lie in one allocation on the device; if not, an error is noted under `what`.
bool standin_inside(const void* p, size_t size, const char* what);
// Note an error: the test fails.
void standin_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The run function of the operator whose library is `library`: nvcc (the script) left it uncompiled.
void* standin_resolve(const char* library);
// Forget what was counted.
void standin_reset();
// Check the guard bytes of all allocations, and write what was counted and all errors to a file.
void standin_report(const char* file);
}
