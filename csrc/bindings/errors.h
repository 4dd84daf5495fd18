// Errors that cross into Python. Through the stable ABI a std::invalid_argument arrives as ValueError, a
// std::bad_alloc as MemoryError and any other std::exception as RuntimeError; the Python wrapper (leanattn/checks.py)
// raises TypeError and NotImplementedError before the op is reached.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace leanattn {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Refuses an argument: the message names it, says what came and what was expected.
template <typename... Parts>
void check_argument(bool ok, const Parts&... message) {
  if (!ok) throw std::invalid_argument(concat("leanattn: ", message...));
}

}  // namespace leanattn
