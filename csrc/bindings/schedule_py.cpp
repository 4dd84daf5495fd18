// Python module leanattn._schedule: schedule.h and tile_table.h as the kernels compile them, without torch.
// leanattn/schedule.py is the documented face of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "errors.h"
#include "kernels/merge_parts.h"
#include "kernels/plan.h"
#include "kernels/schedule.h"
#include "kernels/tile_table.h"

namespace py = pybind11;

namespace leanattn {
namespace {

// Beyond any use; keeps the 64-bit count of a line's units from wrapping.
constexpr int32_t kLargestItemCost = 1 << 20;

void check_range(const char* name, int64_t value, int64_t first, int64_t last) {
  check_argument(value >= first && value <= last, name, ": expected ", first, "..", last, ", got ", value);
}

// Shares that refuse what Shares itself may not be asked: it divides, and does not know its own length.
class CheckedShares {
 public:
  explicit CheckedShares(const Shares& shares)
      : total_units_(shares.total_units), workers_(sharing(shares)), shares_(shares) {}
  CheckedShares(int32_t total_units, int32_t workers) : total_units_(total_units), workers_(workers) {
    check_argument(total_units >= 0, "total_units: expected 0 or more, got ", total_units);
    check_range("workers", workers, 1, tile_table::kMaxWorkers);
    shares_ = Shares::of(total_units, workers);
  }

  int32_t workers() const { return workers_; }
  int32_t begin(int32_t worker) const {
    check_range("worker", worker, 0, workers_);
    return shares_.begin(worker);
  }
  int32_t size(int32_t worker) const {
    check_range("worker", worker, 0, workers_ - 1);
    return shares_.size(worker);
  }
  int32_t worker_of(int32_t unit) const {
    check_argument(unit >= 0 && unit < total_units_, "unit: expected one of the line's ", total_units_, ", got ", unit);
    return shares_.worker_of(unit);
  }

 private:
  // Workers that have a unit at least.
  static int32_t sharing(const Shares& s) {
    if (s.share == 0) return s.longer;
    return static_cast<int32_t>((int64_t{s.total_units} - s.longer + s.share - 1) / s.share);
  }

  int32_t total_units_, workers_;
  Shares shares_{};
};

// A batch cut into equal shares. Owns the lengths that a TileLine only points to.
class Schedule {
 public:
  Schedule(std::vector<int32_t> seqlens, int32_t items_per_seq, int32_t tile_tokens, int32_t max_tokens,
           int32_t workers, int32_t item_cost, bool planned, bool batch_invariant)
      : seqlens_(std::move(seqlens)),
        items_per_seq_(items_per_seq),
        tile_tokens_(tile_tokens),
        max_tokens_(max_tokens),
        workers_(workers),
        item_cost_(item_cost) {
    check_argument(items_per_seq > 0, "items_per_seq: expected 1 or more, got ", items_per_seq);
    check_argument(tile_tokens > 0, "tile_tokens: expected 1 or more, got ", tile_tokens);
    const int32_t longest = std::numeric_limits<int32_t>::max() - tile_tokens;
    check_range("max_tokens", max_tokens, 0, longest);
    check_range("workers", workers, 1, tile_table::kMaxWorkers);
    check_range("item_cost", item_cost, 0, kLargestItemCost);
    check_total_units();
    if (batch_invariant) fixed_ = FixedPieces::of(items_per_seq, workers, line().tiles_of(max_tokens));
    cuts_ = planned ? cuts_of(line(), workers, fixed_) : Cuts::of_line(line(), workers, fixed_);
  }

  int32_t total_tiles() const { return leanattn::total_tiles(line()); }
  int32_t total_units() const { return leanattn::total_units(line()); }
  int32_t piece_tiles() const { return cuts_.pieces.tiles; }
  int32_t fixed_pieces() const { return fixed_.most; }
  int32_t partial_slots() const {
    return fixed_.any() ? leanattn::partial_slots(workers_, fixed_) : leanattn::partial_slots(workers_);
  }
  bool whole_items() const { return cuts_.whole.units > 0; }
  int32_t line_item_cost() const { return cuts_.item_cost; }
  CheckedShares shares() const { return CheckedShares(cuts_.shares); }

  // Rows as leanattn.schedule.Span lists them.
  py::list worker_spans(int32_t worker) const {
    check_range("worker", worker, 0, workers_ - 1);
    py::list rows;
    append_spans(worker, rows);
    return rows;
  }

  py::list spans() const {
    py::list rows;
    for (int32_t worker = 0; worker < workers_; ++worker) append_spans(worker, rows);
    return rows;
  }

  // Rows as leanattn.schedule.CutItem lists them.
  py::list cut_items() const {
    py::list rows;
    for (int32_t worker = 0; worker < workers_; ++worker) {
      for (PieceCursor c = cursor(worker); !c.done(); c.next()) {
        const Span span = c.span();
        if (span.whole_item() || !span.starts_item()) continue;
        with_cut(worker, span, [&](const auto& cut, int32_t) {
          py::tuple slots(cut.partials);
          for (int32_t i = 0; i < cut.partials; ++i) slots[i] = cut.slot(i);
          rows.append(py::make_tuple(span.seq, span.item, cut.first_worker, slots));
        });
      }
    }
    return rows;
  }

 private:
  TileLine line() const {
    return {seqlens_.data(), static_cast<int32_t>(seqlens_.size()), items_per_seq_, tile_tokens_, max_tokens_,
            item_cost_};
  }

  PieceCursor cursor(int32_t worker) const { return leanattn::worker_spans(line(), cuts_, worker, fixed_); }

  // Calls use(how a cut span's item is cut, slot of the span's partial).
  template <class Use>
  void with_cut(int32_t worker, const Span& span, const Use& use) const {
    if (fixed_.any()) {
      const auto cut = CutPieces::of(fixed_, cuts_.shares, workers_, worker, span);
      return use(cut, cut.slot(cut.piece));
    }
    use(cuts_.cut_item(worker, span), partial_slot(worker, span));
  }

  void append_spans(int32_t worker, py::list& rows) const {
    for (PieceCursor c = cursor(worker); !c.done(); c.next()) {
      const Span s = c.span();
      const auto append = [&](const py::object& slot, int32_t first_worker, int32_t partials) {
        rows.append(py::make_tuple(worker, s.seq, s.item, s.tile_begin, s.tile_end, s.item_tiles, s.item_line, slot,
                                   first_worker, partials));
      };
      if (s.whole_item()) {
        append(py::none(), worker, 1);
      } else {
        with_cut(worker, s,
                 [&](const auto& cut, int32_t slot) { append(py::int_(slot), cut.first_worker, cut.partials); });
      }
    }
  }

  // schedule.h counts in 32 bits; the count is made in 64 here, so that it cannot wrap before it is checked.
  void check_total_units() const {
    constexpr int64_t kLongest = std::numeric_limits<int32_t>::max();
    int64_t units = 0;
    for (int32_t seq = 0; seq < line().batch && units <= kLongest; ++seq) {
      const int64_t tiles = (int64_t{line().tokens(seq)} + tile_tokens_ - 1) / tile_tokens_;
      if (tiles > 0) units += (tiles + item_cost_) * items_per_seq_;
    }
    check_argument(units <= kLongest, "seqlens: they make a line of 2^31 or more units, expected at most ", kLongest);
  }

  std::vector<int32_t> seqlens_;  // [batch]
  int32_t items_per_seq_, tile_tokens_, max_tokens_, workers_, item_cost_;
  FixedPieces fixed_{};
  Cuts cuts_{};
};

bool is_cuda(const std::string& device_type) {
  check_argument(device_type == "cpu" || device_type == "cuda", "device_type: expected 'cpu' or 'cuda', got '",
                 device_type, "'");
  return device_type == "cuda";
}

// As leanattn.schedule.Tiling lists them.
std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t> tiling(
    const std::string& device_type, int32_t batch, int32_t max_tokens, int32_t num_kv_heads, int32_t rows,
    int32_t head_dim, int32_t v_head_dim, int32_t workers, bool paged, int32_t itemsize, bool score_options,
    int32_t row_limit, bool batch_invariant, bool wgmma) {
  // Rounded up to whole blocks, the rows still fit 32 bits.
  check_range("rows", rows, 1, std::numeric_limits<int32_t>::max() - tile_table::kRowsWgmma);
  check_range("workers", workers, 1, tile_table::kMaxWorkers);
  check_range("head_dim", head_dim, 1, std::numeric_limits<int32_t>::max());
  check_range("v_head_dim", v_head_dim, 1, std::numeric_limits<int32_t>::max());
  check_argument(itemsize == 1 || itemsize == 2 || itemsize == 4, "itemsize: ", itemsize, ", expected 1, 2 or 4");
  const tile_table::Shape shape{batch, max_tokens, num_kv_heads,  rows,      head_dim,       v_head_dim,
                                paged, itemsize,   score_options, row_limit, batch_invariant};
  const auto t = is_cuda(device_type) ? tile_table::cuda_tiling(shape, workers, wgmma) : tile_table::cpu_tiling(shape);
  return {t.heads, t.rows.row_blocks, t.rows.block_rows, t.tile_tokens, t.tiles_in_flight, t.item_cost, t.team_size};
}

int32_t checked_packed_row_limit(const std::string& device_type, bool wgmma, int32_t head_dim, int32_t itemsize,
                                 bool batch_invariant) {
  check_range("head_dim", head_dim, 1, std::numeric_limits<int32_t>::max());
  return tile_table::packed_row_limit(is_cuda(device_type), wgmma, head_dim, itemsize, batch_invariant);
}

int32_t checked_block_tokens(int32_t group, int32_t row_limit) {
  check_range("group", group, 1, std::numeric_limits<int32_t>::max());
  check_range("row_limit", row_limit, 1, std::numeric_limits<int32_t>::max());
  return tile_table::block_tokens(group, row_limit);
}

// Rows as leanattn.schedule.QueryBlock lists them.
// `leftpad`: of each sequence, or of none.
py::list query_blocks(const std::vector<int32_t>& offsets, const std::vector<int32_t>& seqlens, int32_t max_tokens,
                      int32_t window_left, int32_t window_right, const std::vector<int32_t>& leftpad,
                      int32_t block_tokens) {
  check_argument(offsets.size() == seqlens.size() + 1, "cu_seqlens_q: ", offsets.size(), " numbers, expected one more ",
                 "than cache_seqlens, ", seqlens.size() + 1);
  check_range("max_tokens", max_tokens, 0, std::numeric_limits<int32_t>::max());
  check_range("block_tokens", block_tokens, 1, std::numeric_limits<int32_t>::max());
  check_argument(leftpad.empty() || leftpad.size() == seqlens.size(), "cache_leftpad: ", leftpad.size(),
                 " numbers, expected one a sequence, ", seqlens.size());
  const int32_t* pads = leftpad.empty() ? nullptr : leftpad.data();
  const PackedQueries packed{offsets.data(), seqlens.data(), pads,        static_cast<int32_t>(seqlens.size()),
                             offsets.back(), max_tokens,     window_left, window_right,
                             block_tokens};
  py::list blocks;
  for (int32_t seq = 0; seq < packed.seqs; ++seq) {
    for (int32_t i = 0; i < packed.blocks(seq); ++i) {
      int32_t length = 0;
      const QueryBlock block = packed.block(seq, i, length);
      blocks.append(py::make_tuple(block.seq, block.query, block.tokens, block.first, length, block.tail,
                                   packed.unseen(block, length)));
    }
  }
  return blocks;
}

// First row of each part, and the number of rows.
std::vector<int32_t> merge_parts(int32_t rows, int32_t step_rows, int32_t partials) {
  check_range("rows", rows, 1, tile_table::kRowsWgmma);
  check_range("step_rows", step_rows, 1, tile_table::kRowsWgmma);
  check_range("partials", partials, 2, tile_table::kMaxWorkers);
  const auto parts = MergeParts::of(rows, step_rows, partials);
  std::vector<int32_t> begins;
  for (int32_t part = 0; part <= parts.count; ++part) begins.push_back(parts.begin(part, rows, step_rows));
  return begins;
}

MergeTicket merge_ticket(int32_t partials, int32_t parts, int32_t own) {
  check_range("partials", partials, 2, MergeGroups::kMaxAtOnce);
  check_range("parts", parts, 1, partials);
  check_range("own", own, 0, partials - 1);
  return {partials, parts, own};
}

int64_t checked_plan_elements(int64_t batch) {
  check_range("batch", batch, 0, std::numeric_limits<int32_t>::max());
  return Plan::elements(batch);
}

int32_t checked_partial_slots(int32_t workers) {
  check_range("workers", workers, 1, tile_table::kMaxWorkers);
  return partial_slots(workers);
}

}  // namespace
}  // namespace leanattn

PYBIND11_MODULE(_schedule, m) {
  using leanattn::CheckedShares;
  using leanattn::MergeTicket;
  using leanattn::Schedule;

  m.doc() = "csrc/kernels/schedule.h and tile_table.h; use it through leanattn.schedule.";
  m.attr("MAX_WORKERS") = leanattn::tile_table::kMaxWorkers;
  m.attr("MOST_ROWS_GENERAL") = leanattn::tile_table::kMostRowsGeneral;
  m.def("tiling", &leanattn::tiling, py::arg("device_type"), py::arg("batch"), py::arg("max_tokens"),
        py::arg("num_kv_heads"), py::arg("rows"), py::arg("head_dim"), py::arg("v_head_dim"), py::arg("workers"),
        py::arg("paged"), py::arg("itemsize"), py::arg("score_options"), py::arg("row_limit"),
        py::arg("batch_invariant"), py::arg("wgmma"));
  m.def("packed_row_limit", &leanattn::checked_packed_row_limit, py::arg("device_type"), py::arg("wgmma"),
        py::arg("head_dim"), py::arg("itemsize"), py::arg("batch_invariant"));
  m.def("block_tokens", &leanattn::checked_block_tokens, py::arg("group"), py::arg("row_limit"));
  m.def("query_blocks", &leanattn::query_blocks, py::arg("cu_seqlens_q"), py::arg("cache_seqlens"),
        py::arg("max_tokens"), py::arg("window_left"), py::arg("window_right"), py::arg("cache_leftpad"),
        py::arg("block_tokens"));
  m.def("plan_elements", &leanattn::checked_plan_elements, py::arg("batch"));
  m.def("partial_slots", &leanattn::checked_partial_slots, py::arg("workers"));
  m.def("merge_parts", &leanattn::merge_parts, py::arg("rows"), py::arg("step_rows"), py::arg("partials"));

  py::class_<MergeTicket>(m, "MergeTicket")
      .def(py::init(&leanattn::merge_ticket), py::arg("partials"), py::arg("parts"), py::arg("own"))
      .def_property_readonly("has_part", &MergeTicket::has_part)
      .def_property_readonly("own_part", &MergeTicket::own_part)
      .def_property_readonly("decision", &MergeTicket::decision)
      .def_property_readonly_static("arrival", [](const py::object&) { return MergeTicket::arrival(); })
      .def("all_arrived", &MergeTicket::all_arrived, py::arg("word"))
      .def("parts_on_arrival", &MergeTicket::parts_on_arrival, py::arg("before"))
      .def("parts_on_decision", &MergeTicket::parts_on_decision, py::arg("before"))
      .def("complete", &MergeTicket::complete, py::arg("word"));

  py::class_<CheckedShares>(m, "Shares")
      .def(py::init<int32_t, int32_t>(), py::arg("total_units"), py::arg("workers"))
      .def_property_readonly("workers", &CheckedShares::workers)
      .def("begin", &CheckedShares::begin, py::arg("worker"))
      .def("size", &CheckedShares::size, py::arg("worker"))
      .def("worker_of", &CheckedShares::worker_of, py::arg("unit"));

  py::class_<Schedule>(m, "Schedule")
      .def(py::init<std::vector<int32_t>, int32_t, int32_t, int32_t, int32_t, int32_t, bool, bool>(),
           py::arg("seqlens"), py::arg("items_per_seq"), py::arg("tile_tokens"), py::arg("max_tokens"),
           py::arg("workers"), py::arg("item_cost"), py::arg("planned"), py::arg("batch_invariant"))
      .def_property_readonly("total_tiles", &Schedule::total_tiles)
      .def_property_readonly("total_units", &Schedule::total_units)
      .def_property_readonly("piece_tiles", &Schedule::piece_tiles)
      .def_property_readonly("fixed_pieces", &Schedule::fixed_pieces)
      .def_property_readonly("partial_slots", &Schedule::partial_slots)
      .def_property_readonly("whole_items", &Schedule::whole_items)
      .def_property_readonly("line_item_cost", &Schedule::line_item_cost)
      .def_property_readonly("shares", &Schedule::shares)
      .def("worker_spans", &Schedule::worker_spans, py::arg("worker"))
      .def("spans", &Schedule::spans)
      .def("cut_items", &Schedule::cut_items);
}
