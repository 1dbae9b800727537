#pragma once

// The source of the kernel that a configuration means.

#include <string>

#include "gemm/shape.h"
#include "jit/kernel_source.h"

namespace volley::gemm {

inline constexpr const char* kKernelEntry = "volley_gemm";

jit::KernelSource kernel_source(const GemmConfig& config);

// Gives `source`, which has the headers written for it alone, those under gemm/device/ that it
// includes, directly or not.
void add_device_headers(jit::KernelSource& source);

// The header "gemm/device/sm90/wgmma_instruction.h" for one instruction shape: m64 x n, 32 bytes of
// K. Written by a program because the instruction names each of its n/2 registers.
std::string wgmma_header(MmaKind mma, int n);

}  // namespace volley::gemm
