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

namespace convexlayers {

BuildInfo build_info() noexcept {
    return {CONVEXLAYERS_VERSION, CONVEXLAYERS_COMPILER};
}

}  // namespace convexlayers
