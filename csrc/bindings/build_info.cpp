// What this library was built from and for: read by leanattn/info.py through ctypes.
#include "build_info.h"

#include <torch/headeronly/version.h>

#include <string>
#include <string_view>

#include "errors.h"

#ifdef LEANATTN_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace leanattn {
namespace {

#ifdef LEANATTN_WITH_CUDA
std::string cuda_version() { return concat('"', CUDART_VERSION / 1000, '.', CUDART_VERSION % 1000 / 10, '"'); }
#else
std::string cuda_version() { return "null"; }
#endif

#ifdef __clang__
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "g++ " __VERSION__;
#endif

// LEANATTN_* are JSON values from build_support/sources.py; all else is what this compiler saw.
std::string to_json() {
  return concat("{\"version\": " LEANATTN_VERSION, ", \"cuda_version\": ", cuda_version(),
                ", \"cuda_archs\": " LEANATTN_CUDA_ARCHS ", \"cuda_reason\": " LEANATTN_CUDA_REASON,
                ", \"torch_version\": \"" TORCH_VERSION "\", \"torch_target\": \"", (TORCH_TARGET_VERSION >> 56) & 0xff,
                '.', (TORCH_TARGET_VERSION >> 48) & 0xff, "\", \"compiler\": \"", kCompiler, "\"}");
}

}  // namespace

bool built_for_sm90a() { return std::string_view(LEANATTN_CUDA_ARCHS).find("\"9.0a\"") != std::string_view::npos; }

}  // namespace leanattn

// A JSON object; the text lives as long as the library.
extern "C" __attribute__((visibility("default"))) const char* leanattn_build_info() {
  static const std::string text = leanattn::to_json();
  return text.c_str();
}
