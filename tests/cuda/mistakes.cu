// Mistakes that a kernel can make, for test_compute.py: mistakes MISTAKE
#include <cstdio>
#include <cstring>

constexpr int N = 100;

// y[i + to] = x[i + from]
__global__ void shift(const float* x, float* y, int from, int to) {
    const int i = threadIdx.x;
    if (i < N) y[i + to] = x[i + from];
}

// The same, four at a time.
__global__ void shift_quads(const float4* x, float4* y, int from) {
    const int i = threadIdx.x;
    if (i < N / 4) y[i] = x[i + from];
}

// y[at] += 1
__global__ void add(float* y, int at) { atomicAdd(&y[at], 1.0f); }

// y[i] = x[N - 1 - i], by way of two arrays
__global__ void reverse(const float* x, float* y, int to, int from) {
    __shared__ float between[N], behind[N];
    const int i = threadIdx.x;
    if (i < N) between[i + to] = behind[i] = x[i];
    __syncthreads();
    if (i < N) y[i] = i % 2 ? behind[N - 1 - i] : between[N - 1 - i + from];
}

// y[i] = x[i] + 1, for a step that the compiler does not know
__global__ void keep(const float* x, float* y, int step, int to, int from) {
    float own[N];
    for (int i = 0; i < N; i++) own[i * step % N + to] = x[i];
    for (int i = 0; i < N; i++) y[i] = own[i * step % N + from] + 1;
}

struct Table {
    float values[N];
};

// y[i] = x[i] - table[i]
__global__ void look_up(const Table table, const float* x, float* y, int from) {
    const int i = threadIdx.x;
    if (i < N) y[i] = x[i] - table.values[i + from];
}

__global__ void wait() {
    if (threadIdx.x < N) __syncthreads();
}

__global__ void __launch_bounds__(64) bounded() {}

// Needs more registers than 1,024 threads can have: y may be where x is, so all is read before anything is written.
__global__ void many_registers(const float* x, float* y) {
    float own[N];
    for (int i = 0; i < N; i++) own[i] = x[i];
    for (int i = 0; i < N; i++) y[i] = own[N - 1 - i];
}

int main(int, char** arguments) {
    const auto is = [&](const char* mistake) { return strcmp(arguments[1], mistake) == 0; };
    float host[N], *x, *y;
    for (int i = 0; i < N; i++) host[i] = i;
    cudaMalloc(&x, sizeof host);
    cudaMalloc(&y, sizeof host);
    cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
    shift<<<1, 128>>>(x, y, is("read") ? 1 : is("read before") ? -1 : 0, is("write"));
    shift_quads<<<1, 32>>>((float4*)(y + is("misaligned")), (float4*)x, is("read four"));
    add<<<1, 1>>>(x, is("add") ? N : 0);
    reverse<<<1, 128>>>(x, y, is("shared write"), is("shared read"));
    keep<<<1, 1>>>(y, x, 7, is("local write"), is("local read"));
    Table table;
    memcpy(table.values, host, sizeof host);
    look_up<<<1, 128>>>(table, x, y, is("parameter"));
    if (is("wait")) wait<<<1, 128>>>();
    if (is("threads")) wait<<<1, 2048>>>();
    if (is("bounds")) bounded<<<1, 128>>>();
    if (is("registers")) many_registers<<<1, 1024>>>(x, y);
    if (is("blocks")) bounded<<<dim3(1, 65536), 1>>>();
    if (is("shared memory")) bounded<<<1, 1, (48 << 10) + 1>>>();
    cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost);
    for (float value : host) printf("%g ", value);
    puts(cudaGetErrorString(cudaGetLastError()));
}
