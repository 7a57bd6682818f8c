#include <cstdlib>
#include <string>

#include "lanes/kernels.hpp"

namespace convexlayers {

namespace baseline {
extern const Kernels table;
}
#if defined(CONVEXLAYERS_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels& choose() {
#if defined(CONVEXLAYERS_X86)
    const char* const asked = std::getenv("CONVEXLAYERS_ISA");
    const std::string most = asked != nullptr ? asked : "avx512";
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (has_avx512 && most == "avx512") return avx512::table;
    if (has_avx2 && most != "baseline") return avx2::table;
#endif
    return baseline::table;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace convexlayers
