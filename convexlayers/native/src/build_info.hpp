// How this binary was built: what an issue report needs and no runtime query can tell.
#pragma once

namespace convexlayers {

struct BuildInfo {
    const char* version;   // of the package the sources belong to
    const char* compiler;  // name and version
};

BuildInfo build_info() noexcept;

}  // namespace convexlayers
