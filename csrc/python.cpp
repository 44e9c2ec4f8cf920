// The only file that knows Python: it turns numpy arrays into spans, releases the GIL, and maps errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor.hpp"
#include "kernels.hpp"
#include "limits.hpp"
#include "sampling.hpp"

namespace nb = nanobind;

namespace {

using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutRow = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename Array>
auto span(const Array& array) {
  return std::span(array.data(), array.size());
}

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// Rows of logits; a row may be longer than the vocabulary (padding), so only its elements need to be adjacent.
using LogitRows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

std::vector<std::span<const float>> rows_of(const LogitRows& logits) {
  const std::size_t vocabulary = logits.shape(1);
  require(logits.shape(0) == 0 || vocabulary == 1 || logits.stride(1) == 1, "a row of logits must be contiguous");
  require(vocabulary >= 1 && vocabulary <= sixfold::kMaxVocabulary, "rows need 1 to 1048575 logits");
  std::vector<std::span<const float>> rows;
  for (std::size_t r = 0; r < logits.shape(0); ++r) {
    rows.emplace_back(logits.data() + static_cast<std::int64_t>(r) * logits.stride(0), vocabulary);
  }
  return rows;
}

// Token ids from any iterable of int. Quick for a list, which is what a sequence keeps.
std::vector<std::int32_t> ids_of(nb::handle iterable) {
  std::vector<std::int32_t> ids;
  if (iterable.is_none()) return ids;
  const nb::object items = nb::steal(PySequence_Fast(iterable.ptr(), "token ids must be iterable"));
  if (!items.is_valid()) throw nb::python_error();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
  ids.reserve(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    const long long id = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(items.ptr(), i));
    if (id == -1 && PyErr_Occurred()) throw nb::python_error();
    ids.push_back(id < 0 || id > INT32_MAX ? -1 : static_cast<std::int32_t>(id));  // -1 is no token of any vocabulary
  }
  return ids;
}

std::vector<sixfold::KvFormat> formats_of(const std::vector<std::string>& names) {
  std::vector<sixfold::KvFormat> formats;
  for (const std::string& name : names) {
    require(name == "f16" || name == "int8" || name == "int4", "a KV format is f16, int8 or int4");
    formats.push_back(name == "f16"    ? sixfold::KvFormat::kF16
                      : name == "int8" ? sixfold::KvFormat::kInt8
                                       : sixfold::KvFormat::kInt4);
  }
  return formats;
}

nb::tuple sampled_tuple(std::int32_t id, const sixfold::Likelihood& likelihood,
                        const std::vector<sixfold::Alternative>& alternatives) {
  nb::list top;
  for (const auto& [other, logprob] : alternatives) top.append(nb::make_tuple(other, logprob));
  return nb::make_tuple(id, likelihood.logprob, likelihood.rank, nb::tuple(top));
}

// Calls task(row) for each row: on the executor's threads if there is one.
template <typename Task>
void each_row(sixfold::Executor* executor, std::size_t rows, const Task& task) {
  if (executor)
    executor->each(static_cast<int>(rows), [&](int row) { task(static_cast<std::size_t>(row)); });
  else
    for (std::size_t row = 0; row < rows; ++row) task(row);
}

// A bit an id, [masks, ceil(vocabulary / 32)].
using Masks = nb::ndarray<const std::uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The mask of each row of logits; empty: none.
std::vector<std::span<const std::uint32_t>> masks_of(const std::optional<Masks>& masks, const std::vector<int>& mask_of,
                                                     std::size_t rows, std::size_t vocabulary) {
  std::vector<std::span<const std::uint32_t>> result(rows);
  if (!masks) return result;
  require(mask_of.size() == rows && masks->shape(1) * 32 >= vocabulary, "masks do not fit the logits");
  for (std::size_t r = 0; r < rows; ++r) {
    require(mask_of[r] < static_cast<int>(masks->shape(0)), "there is no such mask");
    if (mask_of[r] >= 0) result[r] = {masks->data() + mask_of[r] * masks->shape(1), masks->shape(1)};
  }
  return result;
}

nb::list sample_rows(LogitRows logits, const nb::list& settings,
                     nb::ndarray<const std::uint64_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu> keys,
                     const nb::list& tokens, const nb::list& suppressed, const std::vector<int>& logprobs,
                     sixfold::Executor* executor, std::optional<Masks> masks, const std::vector<int>& mask_of) {
  using namespace sixfold;
  const auto rows = rows_of(logits);
  const std::size_t count = rows.size();
  require(settings.size() == count && keys.shape(0) == count && tokens.size() == count && suppressed.size() == count &&
              logprobs.size() == count,
          "every argument needs one entry a row of logits");
  std::vector<std::vector<std::int32_t>> ids;
  for (std::size_t r = 0; r < count; ++r) ids.push_back(ids_of(tokens[r]));
  for (std::size_t r = 0; r < count; ++r) ids.push_back(ids_of(suppressed[r]));
  std::vector<SamplingRow> requests;
  for (std::size_t r = 0; r < count; ++r) {
    const std::uint64_t* key = keys.data() + 4 * r;
    requests.push_back({.logits = rows[r],
                        .settings = nb::cast<const SamplingSettings*>(settings[r]),
                        .key = {.seed = key[0], .choice = static_cast<std::uint32_t>(key[1]), .position = key[2]},
                        .tokens = ids[r],
                        .prompt_length = key[3],
                        .suppressed = ids[count + r]});
    require(requests.back().settings != nullptr, "settings must not be None");
  }
  const auto allowed = masks_of(masks, mask_of, count, logits.shape(1));
  std::vector<Drawn> drawn(count);
  std::vector<Likelihood> likelihoods(count);
  std::vector<std::vector<Alternative>> alternatives(count);
  {
    nb::gil_scoped_release release;
    each_row(executor, count, [&](std::size_t r) {
      if (!allowed[r].empty()) requests[r].logits = masked(rows[r], allowed[r]);
      drawn[r] = sample(requests[r]);
      if (drawn[r].status != SamplingStatus::kOk || logprobs[r] < 0) return;
      const LogProbabilities distribution(requests[r].logits);
      likelihoods[r] = distribution.likelihood(drawn[r].id);
      alternatives[r] = distribution.top(static_cast<std::size_t>(logprobs[r]));
    });
  }
  nb::list result;
  for (std::size_t r = 0; r < count; ++r) {
    if (drawn[r].status != SamplingStatus::kOk) {
      result.append(nb::make_tuple(-static_cast<int>(drawn[r].status), nb::none(), nb::none(), nb::make_tuple()));
    } else if (logprobs[r] < 0) {
      result.append(nb::make_tuple(drawn[r].id, nb::none(), nb::none(), nb::make_tuple()));
    } else {
      result.append(sampled_tuple(drawn[r].id, likelihoods[r], alternatives[r]));
    }
  }
  return result;
}

std::vector<std::span<const float>> rows_with_targets(const LogitRows& logits, const Ints& targets) {
  auto rows = rows_of(logits);
  require(targets.size() == rows.size(), "every row of logits needs one target");
  for (const std::int32_t id : span(targets)) {
    require(id >= 0 && static_cast<std::size_t>(id) < logits.shape(1), "a target is outside the vocabulary");
  }
  return rows;
}

nb::list score_rows(LogitRows logits, Ints targets, std::size_t top) {
  using namespace sixfold;
  const auto rows = rows_with_targets(logits, targets);
  std::vector<Likelihood> likelihoods(rows.size());
  std::vector<std::vector<Alternative>> alternatives(rows.size());
  {
    nb::gil_scoped_release release;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const LogProbabilities distribution(rows[r]);
      likelihoods[r] = distribution.likelihood(targets.data()[r]);
      alternatives[r] = distribution.top(top);
    }
  }
  nb::list result;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    result.append(sampled_tuple(targets.data()[r], likelihoods[r], alternatives[r]));
  }
  return result;
}

nb::ndarray<nb::numpy, double, nb::ndim<1>> logprobs_of(LogitRows logits, Ints targets) {
  const auto rows = rows_with_targets(logits, targets);
  auto values = std::make_unique<std::vector<double>>(rows.size());
  {
    nb::gil_scoped_release release;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      (*values)[r] = sixfold::LogProbabilities(rows[r]).of(targets.data()[r]);
    }
  }
  std::vector<double>* kept = values.release();
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
  return {kept->data(), {kept->size()}, owner};
}

nb::list argmax_rows(LogitRows logits, sixfold::Executor* executor) {
  const auto rows = rows_of(logits);
  std::vector<std::int32_t> ids(rows.size());
  {
    nb::gil_scoped_release release;
    each_row(executor, rows.size(), [&](std::size_t r) { ids[r] = sixfold::argmax(rows[r]); });
  }
  nb::list result;
  for (const std::int32_t id : ids) result.append(id);
  return result;
}

void bind_sampling(nb::module_& module) {
  using namespace sixfold;
  nb::class_<SamplingSettings>(module, "SamplingSettings")
      .def(
          "__init__",
          [](SamplingSettings* self, double temperature, std::int64_t top_k, double top_p, double min_p,
             double typical_p, double repetition_penalty, double frequency_penalty, double presence_penalty,
             const nb::dict& logit_bias, const std::vector<std::uint32_t>& allowed,
             const std::vector<TokenIds>& bad_words, std::int64_t no_repeat_ngram, double dry_multiplier,
             double dry_base, std::int64_t dry_allowed_length, std::int64_t dry_last_n, const TokenIds& dry_breaker_ids,
             const std::vector<TokenIds>& dry_breakers) {
            std::vector<Bias> bias;
            for (const auto& [id, value] : logit_bias) {
              const std::int64_t wide = nb::cast<std::int64_t>(id);
              bias.push_back({wide < 0 || wide > INT32_MAX ? -1 : static_cast<std::int32_t>(wide),
                              static_cast<float>(nb::cast<double>(value))});
            }
            new (self) SamplingSettings{
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repetition_penalty,
                frequency_penalty,
                presence_penalty,
                std::move(bias),
                allowed,
                bad_words,
                no_repeat_ngram,
                Dry{dry_multiplier, dry_base, dry_allowed_length, dry_last_n, dry_breaker_ids, dry_breakers}};
          },
          nb::kw_only(), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"),
          nb::arg("typical_p"), nb::arg("repetition_penalty"), nb::arg("frequency_penalty"),
          nb::arg("presence_penalty"), nb::arg("logit_bias"), nb::arg("allowed") = std::vector<std::uint32_t>{},
          nb::arg("bad_words") = std::vector<TokenIds>{}, nb::arg("no_repeat_ngram") = 0,
          nb::arg("dry_multiplier") = 0.0, nb::arg("dry_base") = 1.75, nb::arg("dry_allowed_length") = 2,
          nb::arg("dry_last_n") = -1, nb::arg("dry_breaker_ids") = TokenIds{},
          nb::arg("dry_breakers") = std::vector<TokenIds>{});
  module.def("sample", &sample_rows, nb::arg("logits").noconvert(), nb::arg("settings"), nb::arg("keys").noconvert(),
             nb::arg("tokens"), nb::arg("suppressed"), nb::arg("logprobs"), nb::arg("executor").none() = nb::none(),
             nb::arg("masks").noconvert().none() = nb::none(), nb::arg("mask_of") = std::vector<int>{},
             "One (id, logprob, rank, top) a row; keys [R, 4] are seed, choice, position, prompt length; logprobs < 0 "
             "asks for none; masks [M, words] have a bit an id, mask_of [R] names a row's or is -1. A negative id is a "
             "failure: -1 nothing possible, -2 logit_bias outside the vocabulary.");
  module.def("argmax", &argmax_rows, nb::arg("logits").noconvert(), nb::arg("executor").none() = nb::none(),
             "Id of the largest logit a row, -1 if there is none. `executor`: whose threads share the rows.");
  module.def("score", &score_rows, nb::arg("logits").noconvert(), nb::arg("targets").noconvert(), nb::arg("top"),
             "(target, logprob, rank, top) a row; logprob NaN and rank 0 where every logit is NaN or -inf.");
  module.def("logprobs_of", &logprobs_of, nb::arg("logits").noconvert(), nb::arg("targets").noconvert(),
             "Log-probability of each row's target, float64 [R].");
  module.def(
      "log_sum_exp",
      [](Floats logits) {
        require(logits.size() >= 1 && logits.size() <= kMaxVocabulary, "a row needs 1 to 1048575 logits");
        return LogProbabilities(span(logits)).log_sum_exp();
      },
      nb::arg("logits").noconvert());
  module.def(
      "random_bits",
      [](std::uint64_t seed, std::uint32_t choice, std::uint64_t position) {
        return random_bits({seed, choice, position});
      },
      nb::arg("seed"), nb::arg("choice"), nb::arg("position"), "The 64 random bits that draw one token.");
  module.def("philox", &philox, nb::arg("counter"), nb::arg("key"));
}

void bind_executor(nb::module_& module) {
  using sixfold::Executor;
  nb::class_<Executor>(module, "Executor")
      .def(
          "__init__",
          [](Executor* self, Bytes plan, const std::string& isa, int threads, int max_tokens, int pages,
             const std::vector<std::string>& kv_formats, Floats key_centres, int max_sequences) {
            require(max_sequences >= 1 && max_sequences <= 1 << 16, "max_sequences must be 1 to 65536");
            require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
            require(max_tokens >= 1 && max_tokens <= 1 << 17, "max_tokens must be 1 to 131072");
            require(pages >= 1, "pages must be at least 1");
            new (self) Executor(span(plan), isa.c_str(), threads, max_tokens, pages, formats_of(kv_formats),
                                span(key_centres), max_sequences);
          },
          nb::arg("plan"), nb::arg("isa"), nb::arg("threads"), nb::arg("max_tokens"), nb::arg("pages"),
          nb::arg("kv_formats"), nb::arg("key_centres"), nb::arg("max_sequences"), nb::keep_alive<1, 2>())
      .def(
          "key_means",
          [](Executor& self, Ints pages, int tokens, OutRow out) {
            self.key_means(span(pages), tokens, {out.data(), out.size()});
          },
          nb::arg("pages"), nb::arg("tokens"), nb::arg("out"))
      .def(
          "forward",
          [](Executor& self, Ints tokens, Ints starts, Ints counts, Ints pages, Ints page_offsets,
             std::optional<Ints> adapters) {
            nb::gil_scoped_release release;
            self.forward(span(tokens), span(starts), span(counts), span(pages), span(page_offsets),
                         adapters ? span(*adapters) : std::span<const std::int32_t>());
          },
          nb::arg("tokens"), nb::arg("starts"), nb::arg("counts"), nb::arg("pages"), nb::arg("page_offsets"),
          nb::arg("adapters").none() = nb::none())
      .def("set_adapter", &Executor::set_adapter, nb::arg("slot"), nb::arg("adapter").none(),
           "Between steps; None empties the slot.")
      .def(
          "logits",
          [](Executor& self, Ints rows, OutRows out) {
            require(out.shape(0) >= rows.size(), "out has fewer rows than were asked for");
            require(out.shape(1) == static_cast<std::size_t>(self.logits_width()), "out has the wrong width");
            nb::gil_scoped_release release;
            self.logits(span(rows), out.data());
          },
          nb::arg("rows"), nb::arg("out"))
      .def(
          "copy_pages", [](Executor& self, Ints from, Ints to) { self.copy_pages(span(from), span(to)); },
          nb::arg("sources"), nb::arg("targets"))
      .def("replace_page", &Executor::replace_page, nb::arg("old"), nb::arg("page"))
      .def(
          "move_tokens",
          [](Executor& self, nb::ndarray<const std::int32_t, nb::shape<-1, 6>, nb::c_contig, nb::device::cpu> moves) {
            const auto* first = reinterpret_cast<const sixfold::KvMove*>(moves.data());
            nb::gil_scoped_release release;
            self.move_tokens({first, moves.shape(0)});
          },
          nb::arg("moves"), "Rows of source page and slot, target page and slot, count, shift; in this order.")
      .def(
          "read_page",
          [](Executor& self, int page) {
            const auto bytes = self.page(page);
            return nb::bytes(bytes.data(), bytes.size());
          },
          nb::arg("page"))
      .def(
          "write_page",
          [](Executor& self, int page, const nb::bytes& content) {
            const auto bytes = self.page(page);
            require(content.size() == bytes.size(), "the content is not as long as a page");
            std::memcpy(bytes.data(), content.data(), bytes.size());
          },
          nb::arg("page"), nb::arg("content"))
      .def("profile", &Executor::profile, nb::arg("on"), "Times every operator from now on, or no longer.")
      .def(
          "profiled",
          [](Executor& self) {
            nb::list times;
            for (const sixfold::OpTime& time : self.profiled())
              times.append(nb::make_tuple(time.section, time.op, time.calls, time.seconds));
            return times;
          },
          "(section, operator, calls, seconds) since the last call; section 0 is the body, 1 the head.")
      .def_prop_ro("logits_width", &Executor::logits_width)
      .def_prop_ro("num_pages", &Executor::pages)
      .def_prop_ro("page_bytes", &Executor::page_bytes)
      .def_prop_ro("threads", &Executor::threads)
      .def_prop_ro("isa", &Executor::isa)
      .def_prop_ro("vocab_size", [](const Executor& self) { return self.header().vocabulary; });
}

void bind_adapters(nb::module_& module) {
  using namespace sixfold;
  using Records = nb::ndarray<const std::int64_t, nb::shape<-1, 6>, nb::c_contig, nb::device::cpu>;
  nb::class_<Adapter>(module, "Adapter")
      .def(
          "__init__",
          [](Adapter* self, int values, Bytes data, Floats scales, Records parts) {
            std::vector<AdapterRecord> records;
            for (std::size_t i = 0; i < parts.shape(0); ++i) {
              const std::int64_t* r = parts.data() + 6 * i;
              records.push_back({r[0] != 0, r[1], r[2], r[3], r[4], r[5]});
            }
            nb::gil_scoped_release release;
            new (self) Adapter(static_cast<Values>(values), span(data), span(scales), std::move(records));
          },
          nb::arg("values"), nb::arg("data"), nb::arg("scales"), nb::arg("records"),
          "records [n, 6]: whether a B, matrix, offset, tiles, width, first (csrc/lora.hpp).")
      .def_prop_ro("bytes", &Adapter::bytes);
}

// What `sixfold bench` measures the kernels against.
void bind_limits(nb::module_& module) {
  using namespace sixfold;
  const auto check = [](int threads) { require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024"); };
  module.def(
      "limit_read_bandwidth",
      [check](std::size_t bytes, int threads, int repeats) {
        check(threads);
        require(bytes >= 1 && bytes <= std::size_t{1} << 40 && repeats >= 1, "bytes and repeats must be at least 1");
        nb::gil_scoped_release release;
        return read_bandwidth(bytes, threads, repeats);
      },
      nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"), "Bytes a second, for each pass over the buffer.");
  for (const bool integer : {true, false})
    module.def(
        integer ? "limit_integer_macs" : "limit_float_macs",
        [check, integer](const std::string& isa, int threads) {
          check(threads);
          nb::gil_scoped_release release;
          return (integer ? integer_macs : float_macs)(isa.c_str(), threads);
        },
        nb::arg("isa"), nb::arg("threads"), "Multiply-accumulates a second in registers, all threads together.");
  nb::class_<Product>(module, "Product")
      .def(
          "__init__",
          [check](Product* self, Bytes record_bytes, const std::string& isa, int rows, int threads) {
            check(threads);
            MatrixRecord record;
            require(record_bytes.size() == sizeof(record), "a matrix record has another size");
            std::memcpy(&record, record_bytes.data(), sizeof(record));
            require(record.rows >= 1 && record.columns >= 1 && rows >= 1 && rows <= 1 << 16, "a side of 0");
            new (self) Product(record, isa.c_str(), rows, threads);
          },
          nb::arg("record"), nb::arg("isa"), nb::arg("rows"), nb::arg("threads"))
      .def_prop_ro("tiles", &Product::tiles)
      .def_prop_ro("tile_bytes", &Product::bytes)
      .def(
          "run",
          [](Product& self, int rows, int tiles) {
            require(rows >= 1 && rows <= self.rows() && tiles >= 1, "rows or tiles out of range");
            nb::gil_scoped_release release;
            return self.run(rows, tiles);
          },
          nb::arg("rows"), nb::arg("tiles"), "Seconds of a product of `rows` rows with the next `tiles` tiles.");
}

// Single kernels, for the tests that compare every instruction set with the numpy reference.
void bind_kernels(nb::module_& module) {
  using namespace sixfold;
  module.def(
      "kernel_matmul",
      [](const std::string& isa, Bytes record_bytes, Bytes tiles, Rows x, OutRows y) {
        MatrixRecord record;
        require(record_bytes.size() == sizeof(record), "a matrix record has another size");
        std::memcpy(&record, record_bytes.data(), sizeof(record));
        const Kernels& kernels = choose_kernels(isa.c_str());
        const int rows = static_cast<int>(x.shape(0)), columns = static_cast<int>(x.shape(1));
        const std::size_t tile = tile_bytes(record), count = round_up(record.rows, kTileColumns) / kTileColumns;
        require(tiles.size() == tile * count && columns == static_cast<int>(round_up(record.columns, kBlock)) &&
                    y.shape(0) == x.shape(0) && y.shape(1) == count * kTileColumns,
                "shapes disagree");
        ActivationBuffer activations(rows, columns);
        for (int r = 0; r < rows; ++r) activations.emit(kernels, r, x.data() + r * columns, kEmitInt8 | kEmitF32);
        for (std::size_t t = 0; t < count; ++t)
          kernels.matmul(record)(tiles.data() + t * tile, columns, activations.view(), 0, rows,
                                 y.data() + t * kTileColumns, static_cast<int>(y.shape(1)));
      },
      "Multiplies x [rows, padded columns] by packed tiles, quantising x if the format asks for it, into y.");
  module.def(
      "kernel_add_tile",
      [](const std::string& isa, int values, Bytes tile, Rows t, OutRows out) {
        const auto kind = static_cast<Values>(values);
        require(kind == Values::kF32 || kind == Values::kF16 || kind == Values::kBF16, "a tile of floats");
        const int rank = static_cast<int>(t.shape(1)), rows = static_cast<int>(t.shape(0));
        require(rank % 2 == 0 && tile.size() == rank * kTileColumns * (kind == Values::kF32 ? 4u : 2u) &&
                    out.shape(0) == t.shape(0) && out.shape(1) >= kTileColumns,
                "shapes disagree");
        choose_kernels(isa.c_str())
            .add_tile(kind)(tile.data(), rank, t.data(), rank, rows, out.data(), static_cast<int>(out.shape(1)));
      },
      "out [rows, >= 16] += t [rows, rank] times a float tile [rank, 16].");
  module.def("kernel_unpack_row", [](Bytes record_bytes, Bytes tiles, int row, OutRow out) {
    Matrix matrix{};
    require(record_bytes.size() == sizeof(matrix.record), "a matrix record has another size");
    std::memcpy(&matrix.record, record_bytes.data(), sizeof(matrix.record));
    matrix.tile_bytes = tile_bytes(matrix.record);
    matrix.record.stride = static_cast<std::uint32_t>(matrix.tile_bytes);
    matrix.data = tiles.data();
    require(row >= 0 && (row / kTileColumns + 1) * matrix.tile_bytes <= tiles.size(), "no such row");
    require(out.size() == matrix.record.columns, "out has the wrong length");
    unpack_row(matrix, row, 1.0f, out.data());
  });
  module.def("kernel_rms_norm", [](const std::string& isa, Floats x, Floats w, float epsilon, OutRow y) {
    require(x.size() == w.size() && x.size() == y.size(), "lengths differ");
    choose_kernels(isa.c_str()).rms_norm(x.data(), w.data(), epsilon, static_cast<int>(x.size()), y.data());
  });
  module.def("kernel_gate", [](const std::string& isa, int activation, Floats gate, Floats up, OutRow y) {
    require(gate.size() == up.size() && gate.size() == y.size(), "lengths differ");
    choose_kernels(isa.c_str())
        .gate(static_cast<Activation>(activation), gate.data(), up.data(), static_cast<int>(gate.size()), y.data());
  });
  module.def("kernel_rope", [](const std::string& isa, OutRow x, Floats cosine, Floats sine) {
    require(cosine.size() == sine.size() && x.size() >= 2 * cosine.size(), "lengths differ");
    choose_kernels(isa.c_str()).rope(x.data(), cosine.data(), sine.data(), static_cast<int>(cosine.size()));
  });
  module.def("kernel_rotate_head", [](const std::string& isa, OutRow x) {
    require(x.size() % 16 == 0, "heads are multiples of 16");
    choose_kernels(isa.c_str()).rotate_head(x.data(), static_cast<int>(x.size()));
  });
  module.def(
      "kernel_attention",
      [](const std::string& isa, const std::string& format, Rows q, Rows k, Rows v, int tokens, int position,
         int window, OutRows out) {
        const int rows = static_cast<int>(q.shape(0)), d = static_cast<int>(q.shape(1));
        const int keys = static_cast<int>(k.shape(0));
        require(tokens >= 1 && rows % tokens == 0 && d % 16 == 0, "rows must be tokens by group, head size 16 n");
        require(position >= 0 && position + tokens <= keys && v.shape(0) == k.shape(0), "keys end before the tokens");
        require(static_cast<int>(k.shape(1)) == d && static_cast<int>(v.shape(1)) == d && out.size() == q.size(),
                "head sizes differ");
        const Kernels& kernels = choose_kernels(isa.c_str());
        const int pages = (keys + kPageTokens - 1) / kPageTokens;
        const KvFormat kv_format = formats_of({format})[0];
        require(kv_format != KvFormat::kInt4 || d % kInt4Block == 0, "int4 needs a head size of 32 n");
        const std::size_t stride = kv_head_bytes(kv_format, d);
        Buffer<std::uint8_t> pool(stride * pages);
        std::vector<std::int32_t> table(pages);
        for (int key = 0; key < keys; ++key) {
          table[key / kPageTokens] = key / kPageTokens;
          std::uint8_t* page = pool.data() + stride * (key / kPageTokens);
          const std::size_t at = static_cast<std::size_t>(key) * d;
          write_key(kernels, kv_format, d, key % kPageTokens, k.data() + at, page);
          write_value(kernels, kv_format, d, key % kPageTokens, v.data() + at, page);
        }
        require(rows <= kMaxAttentionRows, "more rows than an attention job takes");
        std::vector<float> weight(rows), max(rows);
        Buffer<float> scratch(attention_scratch(rows, d));
        const int group = rows / tokens;
        AttentionJob job{};
        job.q = q.data();
        job.q_stride = group * d;
        job.tokens = tokens;
        job.group = group;
        job.head_size = d;
        job.pool = pool.data();
        job.page_stride = job.page_bytes = stride;
        job.pages = table.data();
        job.position = position;
        job.window = window;
        job.end = position + tokens;
        job.sum = out.data();
        job.weight = weight.data();
        job.max = max.data();
        job.scratch = scratch.data();
        using Attention = void (*)(const AttentionJob&);
        const Attention attention[] = {kernels.attention, kernels.int8_attention, kernels.int4_attention};
        attention[static_cast<int>(kv_format)](job);
        for (int r = 0; r < rows; ++r)
          for (int i = 0; i < d; ++i) out.data()[static_cast<std::size_t>(r) * d + i] /= weight[r];
      },
      "Attention of q [tokens * group, d] over k, v [keys, d] held in pages of a KV format.");
}

}  // namespace

NB_MODULE(_native, module) {
  bind_sampling(module);
  bind_adapters(module);
  bind_executor(module);
  bind_kernels(module);
  bind_limits(module);
}
