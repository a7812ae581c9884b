#pragma once

#include <cstddef>
#include <cstdint>

// The part of the DLPack 1.3 C ABI that torch.Tensor.__dlpack_c_exchange_api__ offers and qbits reads:
// https://dmlc.github.io/dlpack/latest/c_api.html. Layouts are fixed for every 1.x.

namespace qbits::dlpack {

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr const char* kExchangeApiAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kExchangeApiCapsule = "dlpack_exchange_api";

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ManagedTensor {
  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* previous;  // the table of an older version, or null
  // A tensor of the prototype's shape, dtype and device. -1 after a call of set_error on failure.
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*managed_to_object)(ManagedTensor* tensor, void** out);
  // Fills `out` with a view that lives until control returns to Python. -1 with a Python error on failure.
  int (*tensor_from_object)(void* object, Tensor* out);
  // The framework's current stream. -1 with a Python error on failure.
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

static_assert(sizeof(void*) == 8, "the offsets below are those of 64-bit platforms");
static_assert(sizeof(Device) == 8 && sizeof(DataType) == 4);
static_assert(offsetof(Tensor, device) == 8 && offsetof(Tensor, ndim) == 16 && offsetof(Tensor, dtype) == 20);
static_assert(offsetof(Tensor, shape) == 24 && offsetof(Tensor, strides) == 32);
static_assert(offsetof(Tensor, byte_offset) == 40 && sizeof(Tensor) == 48);
static_assert(offsetof(ManagedTensor, deleter) == 16 && offsetof(ManagedTensor, tensor) == 32);
static_assert(offsetof(ExchangeApi, previous) == 8 && offsetof(ExchangeApi, allocate) == 16);
static_assert(offsetof(ExchangeApi, tensor_from_object) == 40 && offsetof(ExchangeApi, current_stream) == 48);
static_assert(sizeof(ExchangeApi) == 56);

}  // namespace qbits::dlpack
