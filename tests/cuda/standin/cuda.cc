// libcuda.so.1: a driver with one device, as utils/runtime/cuda.py and Jittor ask for it. The environment can make it
// worse: $STANDIN_DRIVER (major version of CUDA), $STANDIN_MEMORY (bytes), $STANDIN_CAPABILITY (major version).
#include <cstring>
#include "standin.h"
extern "C" {
int cuDriverGetVersion(int* version) { *version = 1000 * standin_setting("STANDIN_DRIVER", STANDIN_CUDA); return 0; }
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int length, int) { strncpy(name, "stand-in", length); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = standin_setting("STANDIN_MEMORY", STANDIN_BYTES); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? standin_setting("STANDIN_CAPABILITY", 9) : 0;  // compute capability 9.0
    return 0;
}
}
