// Unit tests of csrc/kernels/schedule.h and tile_table.h that need a C++ compiler and nothing else:
//   g++ -std=c++20 -Icsrc tests/cpp/test_schedule.cpp -o test_schedule && ./test_schedule
// Random batches are the business of tests/cpu/test_schedule.py; here stand the cases worth reading one by one.
#include <cstdio>
#include <limits>
#include <vector>

#include "kernels/schedule.h"
#include "kernels/tile_table.h"

using namespace leanattn;

namespace {

int failures = 0;

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                                    \
    }                                                                                \
  } while (false)

struct Tile {
  int32_t seq, item, tile;
  bool operator==(const Tile&) const = default;
};

// The line written out tile by tile: what the cursor has to walk through.
std::vector<Tile> written_out(const TileLine& line) {
  std::vector<Tile> tiles;
  for (int32_t seq = 0; seq < line.batch; ++seq) {
    for (int32_t item = 0; item < line.items_per_seq; ++item) {
      for (int32_t first = 0; first < line.tokens(seq); first += line.tile_tokens) {
        tiles.push_back({seq, item, first / line.tile_tokens});
      }
    }
  }
  return tiles;
}

std::vector<Span> spans_of(SpanCursor cursor) {
  std::vector<Span> spans;
  for (; !cursor.done(); cursor.next()) spans.push_back(cursor.span());
  return spans;
}
std::vector<Span> spans_of(const TileLine& line, const Shares& shares, int32_t worker) {
  return spans_of(worker_spans(line, shares.begin(worker), shares.begin(worker + 1)));
}

void check_every_tile_once(const TileLine& line, int32_t workers) {
  const std::vector<Tile> expected = written_out(line);
  CHECK(total_tiles(line) == static_cast<int32_t>(expected.size()));
  const Shares shares = Shares::of(total_units(line), workers);
  std::vector<Tile> done;
  int32_t items = 0;  // begun so far
  for (int32_t worker = 0; worker < workers; ++worker) {
    for (const Span& s : spans_of(line, shares, worker)) {
      CHECK(s.item_tiles == line.item_tiles(s.seq));
      CHECK(s.tile_begin < s.tile_end && s.tile_end <= s.item_tiles);
      items += s.starts_item();
      CHECK(s.item_line + s.tile_begin == static_cast<int32_t>(done.size()) + items * line.item_cost);
      for (int32_t tile = s.tile_begin; tile < s.tile_end; ++tile) {
        CHECK(shares.worker_of(s.item_line + tile) == worker);
        done.push_back({s.seq, s.item, tile});
      }
    }
  }
  CHECK(done == expected);
  CHECK(total_units(line) == static_cast<int32_t>(done.size()) + items * line.item_cost);
}

// The same for pieces of equal size: as many workers as pieces, and what they say of their item is true.
void check_fixed_splits(const TileLine& line, int32_t splits) {
  const FixedSplit fixed{splits};
  const int32_t items = line.batch * line.items_per_seq, workers = items * splits;
  std::vector<Tile> done;
  std::vector<int32_t> pieces(items), partials(items), slot_used(partial_slots(workers));
  for (int32_t worker = 0; worker < workers; ++worker) {
    const SpanCursor cursor = fixed.worker_spans(line, worker);
    const std::vector<Span> spans = spans_of(cursor);
    CHECK(spans.size() <= 1);
    if (spans.empty()) continue;
    const Span& s = spans[0];
    CHECK(cursor.last());
    CHECK(s.tokens == line.tokens(s.seq) && s.item_tiles == line.item_tiles(s.seq));
    CHECK(s.tile_begin < s.tile_end && s.tile_end <= s.item_tiles);
    const int32_t size = fixed.piece_tiles(s.item_tiles);  // no larger than it must be
    CHECK(size * splits >= s.item_tiles && (size - 1) * splits < s.item_tiles);
    CHECK(s.ends_item() || s.tile_end - s.tile_begin == size);
    CHECK(splits > 1 || s.whole_item());
    for (int32_t tile = s.tile_begin; tile < s.tile_end; ++tile) done.push_back({s.seq, s.item, tile});

    const int32_t item = worker / splits;
    const CutItem cut = fixed.cut_item(worker, s);
    CHECK(cut.first_worker == item * splits && cut.partials <= splits);
    CHECK(pieces[item] == 0 || partials[item] == cut.partials);  // all pieces agree
    partials[item] = cut.partials;
    CHECK(cut.slot(pieces[item]++) == partial_slot(worker, s));
    CHECK(slot_used[partial_slot(worker, s)]++ == 0);
    CHECK((cut.partials == 1) == s.whole_item());
  }
  CHECK(done == written_out(line));
  CHECK(pieces == partials);
}

void test_every_tile_once() {
  const std::vector<std::vector<int32_t>> batches = {
      {},       {0},          {0, 0, 0},  {1},           {63},
      {64},     {65},         {0, 64, 0}, {640, 1, 129}, {0, 0, 7, 0, 0, 5000, 0},
      {10'000}, {1, 1, 1, 1}, {-5, 70},   {1'000'000},   {64, 128, 192, 256},
  };
  for (const auto& seqlens : batches) {
    for (const int32_t items_per_seq : {1, 2, 7}) {
      for (const int32_t item_cost : {0, 1, 5}) {
        const TileLine line{seqlens.data(), int32_t(seqlens.size()), items_per_seq, 64, 2'000'000, item_cost};
        for (const int32_t workers : {1, 2, 3, 16, 132, 1000}) check_every_tile_once(line, workers);
        for (const int32_t splits : {1, 2, 3, 7, 30, tile_table::kMaxWorkers}) check_fixed_splits(line, splits);
      }
    }
  }
}

// The picture at the top of schedule.h: A 6, B 4, C 16 and D 3 tiles over 5 workers.
void test_picture() {
  const std::vector<int32_t> seqlens = {6, 4, 16, 3};
  const TileLine line{seqlens.data(), 4, 1, 1, 100};
  const Shares shares = Shares::of(total_units(line), 5);
  CHECK(shares.share == 5 && shares.longer == 4);

  const std::vector<Span> second = spans_of(line, shares, 1);
  CHECK(second.size() == 2);
  CHECK(second[0].seq == 1 && second[0].whole_item());
  CHECK(second[1].seq == 2 && second[1].tile_begin == 0 && second[1].tile_end == 2);
  CHECK(second[1].starts_item() && !second[1].ends_item());

  for (int32_t worker = 1; worker <= 4; ++worker) {
    for (const Span& s : spans_of(line, shares, worker)) {
      if (s.seq != 2) continue;
      const CutItem cut = CutItem::of(shares, s);
      CHECK(cut.first_worker == 1 && cut.partials == 4);
      CHECK(cut.slot(worker - 1) == partial_slot(worker, s));
    }
  }
}

// The tickets and slots of a line whose items are cut into more partials than are merged at once.
void test_merge_groups() {
  for (int32_t partials = 1; partials <= tile_table::kMaxWorkers; ++partials) {
    const MergeGroups groups = MergeGroups::of(partials);
    CHECK((groups.count == 1) == (partials <= MergeGroups::kMaxAtOnce));
    CHECK(groups.size * (groups.count - 1) < partials && groups.size * groups.count >= partials);
    int32_t members = 0;
    for (int32_t group = 0; group < groups.count; ++group) {
      members += groups.members(group, partials);
      CHECK(groups.members(group, partials) >= 1 && groups.group_of(group * groups.size) == group);
      CHECK(groups.group_of(group * groups.size + groups.members(group, partials) - 1) == group);
    }
    CHECK(members == partials);
    if (groups.count == 1) continue;
    // Results and tickets belong to workers that have nothing but this item (or begin with it).
    const int32_t workers = 2000, first_worker = 7, last_worker = first_worker + partials - 1;
    for (int32_t group = 0; group < groups.count; ++group) {
      const int32_t owner = group_slot(workers, first_worker, group) - 2 * workers;
      CHECK(owner > first_worker && owner < last_worker);
      const int32_t ticket = first_worker + group * groups.size;
      CHECK(groups.members(group, partials) == 1 || ticket < last_worker);
      CHECK(ticket != first_worker + groups.item_ticket());
    }
    CHECK(first_worker + groups.item_ticket() < last_worker);
  }
}

void test_lengths_are_clamped() {
  const std::vector<int32_t> seqlens = {-1, std::numeric_limits<int32_t>::min(), 500,
                                        std::numeric_limits<int32_t>::max()};
  const TileLine line{seqlens.data(), 4, 1, 64, 256};
  CHECK(line.tokens(0) == 0 && line.tokens(1) == 0 && line.tokens(2) == 256 && line.tokens(3) == 256);
  CHECK(total_tiles(line) == 8);
}

void test_a_cache_of_no_tokens() {
  const std::vector<int32_t> seqlens = {5, 7};
  const TileLine line{seqlens.data(), 2, 3, 64, 0};
  CHECK(total_tiles(line) == 0);
  CHECK(spans_of(line, Shares::of(0, 4), 3).empty());
}

// The longest line that the bindings let through; sums and products on the way must stay inside 32 bits.
void test_longest_line() {
  const int32_t total = std::numeric_limits<int32_t>::max() - 1;
  for (const int32_t workers : {1, 2, 132, tile_table::kMaxWorkers}) {
    const Shares shares = Shares::of(total, workers);
    CHECK(shares.begin(0) == 0 && shares.begin(workers) == total);
    CHECK(shares.worker_of(0) == 0 && shares.worker_of(total - 1) == workers - 1);
    for (int32_t worker = 1; worker < workers; ++worker) {
      CHECK(shares.worker_of(shares.begin(worker)) == worker);
      CHECK(shares.worker_of(shares.begin(worker) - 1) == worker - 1);
    }
  }
}

void test_row_blocks() {
  for (const int32_t most : {8, 16, tile_table::kMaxBlockRows}) {
    for (int32_t rows = 1; rows <= 300; ++rows) {
      const auto blocks = tile_table::RowBlocks::of(rows, most);
      CHECK(blocks.block_rows <= most);
      CHECK(blocks.row_blocks * blocks.block_rows >= rows);
      CHECK((blocks.row_blocks - 1) * blocks.block_rows < rows);
      CHECK(blocks.row_blocks == ceil_div(rows, most));
    }
  }
}

// The first and the last row of a query token, for every group and as many tokens as a call may have rows for.
void test_tokens_of_rows() {
  for (int32_t group = 1; group <= kMostRows; group += 1 + group / 64) {
    const float inverse_group = 1.f / static_cast<float>(group);
    for (int32_t token = 0; int64_t{token + 1} * group <= kMostRows; token += 1 + token / 256) {
      CHECK(token_of(token * group, inverse_group) == token);
      CHECK(token_of(token * group + group - 1, inverse_group) == token);
    }
  }
}

}  // namespace

int main() {
  test_every_tile_once();
  test_picture();
  test_merge_groups();
  test_lengths_are_clamped();
  test_a_cache_of_no_tokens();
  test_longest_line();
  test_row_blocks();
  test_tokens_of_rows();
  if (failures == 0) std::puts("schedule: all checks passed");
  return failures == 0 ? 0 : 1;
}
