// libcuda.so.1: a driver with one device, as utils/runtime/cuda.py and Jittor ask for it.
#include <cstring>
extern "C" {
int cuDriverGetVersion(int* version) { *version = 1000 * STANDIN_CUDA; return 0; }
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int length, int) { strncpy(name, "stand-in", length); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = 24ul << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
    return 0;
}
}
