#pragma once

#include <gtest/gtest.h>

#include <string>

#include "qbits/error.h"

namespace qbits::test {

// The message of the Error with which `call` refuses its arguments; fails the test where it has another code, and
// where there is none (the message is then empty).
template <class Call>
std::string refusal(ErrorCode code, Call call) {
  try {
    call();
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return {};
}

}  // namespace qbits::test
