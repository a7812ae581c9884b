#pragma once

#include "cpu/linear_int8_kernel.h"

// linear_int8_products for rows x of any codes, -128 among them.
QBITS_PER_ISA(void, igemm_products, const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c)
