// libcublas: checks what it is asked for, and computes it if the kernels are computed too.
#include <cublas_v2.h>
#include <algorithm>
#include <cstdio>
#include "standin.h"

namespace {

struct Matrix {
    const void* data;
    long rows, columns, leading, stride;  // column-major, as cuBLAS stores them
    bool inside(long batch, const char* call) const {
        if (rows < 0 || columns < 0 || leading < std::max(1l, rows)) {
            standin_error("%s: a leading dimension of %ld for %ld rows", call, leading, rows);
            return false;
        }
        if (rows == 0 || columns == 0) return true;
        return standin_inside(data, 4 * ((batch - 1) * stride + (columns - 1) * leading + rows), call);
    }
};

cublasStatus_t multiply(
    const char* name, cublasOperation_t ta, cublasOperation_t tb, long m, long n, long k, Matrix a, Matrix b, Matrix c,
    long batch) {
    char call[200];
    snprintf(call, sizeof call, "%s %c%c m %ld n %ld k %ld batch %ld", name, "NT"[ta], "NT"[tb], m, n, k, batch);
    standin_count(call);
    (ta == CUBLAS_OP_N ? a.rows : a.columns) = m;
    (ta == CUBLAS_OP_N ? a.columns : a.rows) = k;
    (tb == CUBLAS_OP_N ? b.rows : b.columns) = k;
    (tb == CUBLAS_OP_N ? b.columns : b.rows) = n;
    c.rows = m;
    c.columns = n;
    bool fine = true;
    for (const Matrix& matrix : {a, b, c}) fine = matrix.inside(batch, call) && fine;
    return fine ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

bool float32(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute) {
    if (a == CUDA_R_32F && b == CUDA_R_32F && c == CUDA_R_32F && compute == CUBLAS_COMPUTE_32F) return true;
    standin_error("cuBLAS: types %d %d %d, computed as %d, not in float32", a, b, c, compute);
    return false;
}

}  // namespace

extern "C" {
cublasStatus_t cublasCreate(cublasHandle_t* handle) { *handle = nullptr; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasSgemm(
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float*, const float* a,
    int lda, const float* b, int ldb, const float*, float* c, int ldc) {
    return multiply("sgemm", ta, tb, m, n, k, {a, 0, 0, lda, 0}, {b, 0, 0, ldb, 0}, {c, 0, 0, ldc, 0}, 1);
}

cublasStatus_t cublasGemmEx(
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void*, const void* a,
    cudaDataType at, int lda, const void* b, cudaDataType bt, int ldb, const void*, void* c, cudaDataType ct, int ldc,
    cublasComputeType_t compute, cublasGemmAlgo_t) {
    if (!float32(at, bt, ct, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return multiply("gemm", ta, tb, m, n, k, {a, 0, 0, lda, 0}, {b, 0, 0, ldb, 0}, {c, 0, 0, ldc, 0}, 1);
}

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void*, const void* a,
    cudaDataType at, int lda, long long as, const void* b, cudaDataType bt, int ldb, long long bs, const void*, void* c,
    cudaDataType ct, int ldc, long long cs, int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    if (!float32(at, bt, ct, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return multiply("gemm", ta, tb, m, n, k, {a, 0, 0, lda, as}, {b, 0, 0, ldb, bs}, {c, 0, 0, ldc, cs}, batch);
}
}
