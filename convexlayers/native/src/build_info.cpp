#include "build_info.hpp"

#ifndef CONVEXLAYERS_VERSION
#define CONVEXLAYERS_VERSION "unknown"
#endif

#if defined(__clang__)
#define CONVEXLAYERS_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define CONVEXLAYERS_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define CONVEXLAYERS_COMPILER "msvc"
#else
#define CONVEXLAYERS_COMPILER "unknown"
#endif

#if defined(__AVX512F__)
#define CONVEXLAYERS_INSTRUCTION_SET "avx512"
#elif defined(__AVX2__) && defined(__FMA__)
#define CONVEXLAYERS_INSTRUCTION_SET "avx2+fma"
#elif defined(__x86_64__) || defined(_M_X64)
#define CONVEXLAYERS_INSTRUCTION_SET "sse2"
#elif defined(__ARM_NEON)
#define CONVEXLAYERS_INSTRUCTION_SET "neon"
#else
#define CONVEXLAYERS_INSTRUCTION_SET "scalar"
#endif

namespace convexlayers {

BuildInfo build_info() noexcept {
    return {CONVEXLAYERS_VERSION, CONVEXLAYERS_COMPILER, CONVEXLAYERS_INSTRUCTION_SET};
}

}  // namespace convexlayers
