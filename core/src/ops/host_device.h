#pragma once

// For functions the CPU and CUDA share, so that they compute the same bits.
#if defined(__CUDACC__)
#define QBITS_HOST_DEVICE __host__ __device__
#else
#define QBITS_HOST_DEVICE
#endif
