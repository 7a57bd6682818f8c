#include <cstdlib>
#include <string>

#include "lanes/kernels.hpp"

#if defined(CONVEXLAYERS_X86) && defined(_WIN32)
#include <cpuid.h>
#include <immintrin.h>
#endif

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

#if defined(CONVEXLAYERS_X86)
struct Features {
    bool avx2, avx512;
};

#if defined(_WIN32)
// clang-cl's link lacks the table behind __builtin_cpu_supports. Intel, "Software Developer's Manual", volume 1, 14.3
// and 15.2 to 15.4: the processor has the instructions (cpuid), and the system keeps their registers (xgetbv).
__attribute__((target("xsave"))) Features features() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return {false, false};
    const bool has_xgetbv = ecx >> 27 & 1, has_fma = ecx >> 12 & 1;
    if (!has_xgetbv || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return {false, false};
    const auto has = [ebx](int bit) { return (ebx >> bit & 1) != 0; };
    const auto kept = static_cast<unsigned>(_xgetbv(0));
    const bool avx2 = (kept & 0x06) == 0x06 && has_fma && has(5);
    const bool avx512 = avx2 && (kept & 0xe6) == 0xe6 && has(16) && has(17) && has(30) && has(31);  // F, DQ, BW, VL
    return {avx2, avx512};
}
#else
Features features() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return {avx2, avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")};
}
#endif
#endif

const Kernels& choose() {
#if defined(CONVEXLAYERS_X86)
    const char* const asked = std::getenv("CONVEXLAYERS_ISA");
    const std::string most = asked != nullptr ? asked : "avx512";
    const Features has = features();
    if (has.avx512 && most == "avx512") return avx512::table;
    if (has.avx2 && most != "baseline") return avx2::table;
#endif
    return baseline::table;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace convexlayers
