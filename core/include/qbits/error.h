#pragma once

#include <stdexcept>
#include <string>

#include "qbits/export.h"

namespace qbits {

// What went wrong, for callers that react to it; the message says it in words.
enum class ErrorCode {
  InvalidArgument,  // a value, shape or combination no kernel accepts (ValueError in Python)
  InvalidIndex,     // an index outside of what it points into (IndexError in Python)
  InvalidType,      // a dtype or kind of tensor that is not accepted (TypeError in Python)
  Unsupported,      // valid, but not in this build or on this device (NotImplementedError in Python)
  DeviceError,      // the CUDA runtime or driver reported a failure (RuntimeError in Python)
};

// The only exception libqbits throws on purpose. Messages read "[op] what: got X, want Y".
class QBITS_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace qbits
