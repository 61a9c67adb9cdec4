// Mistakes that a kernel can make, for test_compute.py: mistakes MISTAKE
#include <cstdio>
#include <cstring>

constexpr int N = 100;

// y[i + to] = x[i + from]
__global__ void shift(const float* x, float* y, int from, int to) {
    const int i = threadIdx.x;
    if (i < N) y[i + to] = x[i + from];
}

// y[i] = x[N - 1 - i]
__global__ void reverse(const float* x, float* y, int by) {
    __shared__ float between[N];
    const int i = threadIdx.x;
    if (i < N) between[i + by] = x[i];
    __syncthreads();
    if (i < N) y[i] = between[N - 1 - i];
}

// y[i] = x[i] + 1, for a step that the compiler does not know
__global__ void keep(const float* x, float* y, int step, int by) {
    float own[N];
    for (int i = 0; i < N; i++) own[i * step % N + by] = x[i];
    for (int i = 0; i < N; i++) y[i] = own[i * step % N] + 1;
}

__global__ void wait() {
    if (threadIdx.x < N) __syncthreads();
}

int main(int, char** arguments) {
    const auto is = [&](const char* mistake) { return strcmp(arguments[1], mistake) == 0; };
    float host[N], *x, *y;
    for (int i = 0; i < N; i++) host[i] = i;
    cudaMalloc(&x, sizeof host);
    cudaMalloc(&y, sizeof host);
    cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
    shift<<<1, 128>>>(x, y, is("read") ? 1 : is("read before") ? -1 : 0, is("write"));
    reverse<<<1, 128>>>(y, x, is("shared"));
    keep<<<1, 1>>>(x, y, 7, is("local"));
    if (is("wait")) wait<<<1, 128>>>();
    if (is("threads")) wait<<<1, 2048>>>();
    cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost);
    for (float value : host) printf("%g ", value);
    puts(cudaGetErrorString(cudaGetLastError()));
}
