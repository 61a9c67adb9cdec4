// libcublas: checks what it is asked for. With $STANDIN_COMPUTE=1 it computes it, with sums in float64.
#include <cublas_v2.h>
#include <algorithm>
#include <cstdio>
#include <vector>
#include "standin.h"

namespace {

struct Matrix {
    void* data;
    long rows, columns, leading, stride;  // column-major, as cuBLAS stores them
    bool inside(long batch, const char* call) const {
        if (rows < 0 || columns < 0 || leading < std::max(1l, rows)) {
            standin_error("%s: a leading dimension of %ld for %ld rows", call, leading, rows);
            return false;
        }
        if (rows == 0 || columns == 0) return true;
        return standin_inside(data, 4 * ((batch - 1) * stride + (columns - 1) * leading + rows), call);
    }
    float* column(long batch, long j) const { return (float*)data + batch * stride + j * leading; }
    // The same, as rows of the transposed matrix.
    std::vector<float> transposed(long batch) const {
        std::vector<float> x;
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j++) x.push_back(column(batch, j)[i]);
        return x;
    }
};

// c = alpha a b + beta c for matrices of the shapes (m, k), (k, n) and (m, n), where `ta` and `tb` transpose a and b.
void compute(bool ta, bool tb, long k, float alpha, const Matrix& a, const Matrix& b, float beta, const Matrix& c, long batch) {
    for (long l = 0; l < batch; l++) {
        const std::vector<float> columns_of_a = ta ? a.transposed(l) : std::vector<float>();
        std::vector<double> sums(c.rows);
        for (long j = 0; j < c.columns; j++) {
            std::fill(sums.begin(), sums.end(), 0);
            for (long p = 0; p < k; p++) {
                const float* x = ta ? &columns_of_a[p * c.rows] : a.column(l, p);
                const double y = tb ? b.column(l, p)[j] : b.column(l, j)[p];
                for (long i = 0; i < c.rows; i++) sums[i] += x[i] * y;
            }
            float* z = c.column(l, j);
            for (long i = 0; i < c.rows; i++) z[i] = alpha * sums[i] + (beta == 0 ? 0 : beta * z[i]);
        }
    }
}

cublasStatus_t multiply(
    const char* name, cublasOperation_t ta, cublasOperation_t tb, long m, long n, long k, const void* alpha, Matrix a,
    Matrix b, const void* beta, Matrix c, long batch) {
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
    if (!fine) return CUBLAS_STATUS_INVALID_VALUE;
    if (standin_setting("STANDIN_COMPUTE", 0))
        compute(ta != CUBLAS_OP_N, tb != CUBLAS_OP_N, k, *(const float*)alpha, a, b, *(const float*)beta, c, batch);
    return CUBLAS_STATUS_SUCCESS;
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
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float* alpha, const float* a,
    int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return multiply("sgemm", ta, tb, m, n, k, alpha, {(void*)a, 0, 0, lda, 0}, {(void*)b, 0, 0, ldb, 0}, beta, {c, 0, 0, ldc, 0}, 1);
}

cublasStatus_t cublasGemmEx(
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void* alpha, const void* a,
    cudaDataType at, int lda, const void* b, cudaDataType bt, int ldb, const void* beta, void* c, cudaDataType ct, int ldc,
    cublasComputeType_t compute, cublasGemmAlgo_t) {
    if (!float32(at, bt, ct, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return multiply("gemm", ta, tb, m, n, k, alpha, {(void*)a, 0, 0, lda, 0}, {(void*)b, 0, 0, ldb, 0}, beta, {c, 0, 0, ldc, 0}, 1);
}

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void* alpha, const void* a,
    cudaDataType at, int lda, long long as, const void* b, cudaDataType bt, int ldb, long long bs, const void* beta, void* c,
    cudaDataType ct, int ldc, long long cs, int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    if (!float32(at, bt, ct, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return multiply("gemm", ta, tb, m, n, k, alpha, {(void*)a, 0, 0, lda, as}, {(void*)b, 0, 0, ldb, bs}, beta, {c, 0, 0, ldc, cs}, batch);
}
}
