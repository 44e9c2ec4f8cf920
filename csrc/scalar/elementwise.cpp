// Portable norms, activations, rope, quantisation and the table of this instruction set.
#include <algorithm>
#include <cmath>

#include "../half.hpp"
#include "../kernels.hpp"

namespace sixfold {
namespace scalar {

MatmulTile matmul(const MatrixRecord& record);
MatmulTile down_tile(Values values);
AddTile add_tile(Values values);
void attention(const AttentionJob& job);
void int8_attention(const AttentionJob& job);
void int4_attention(const AttentionJob& job);

namespace {

void rms_norm(const float* x, const float* w, float epsilon, int n, float* y) {
  float lanes[8] = {};
  for (int i = 0; i < n; ++i) lanes[i % 8] += x[i] * x[i];
  float sum = 0;
  for (float lane : lanes) sum += lane;
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon);
  for (int i = 0; i < n; ++i) y[i] = x[i] * factor * w[i];
}

void quantize(const float* x, int count, const Activations& out, int row, int block) {
  for (int b = block; b < block + count; ++b, x += kBlock) {
    float largest = 0;
    for (int i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    std::int8_t* q = out.q + out.at(row, b) * kBlock;
    int sums[2] = {};
    for (int i = 0; i < kBlock; ++i) {
      q[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
      sums[i / 16] += q[i];
    }
    out.describe_block(out.at(row, b), scale, sums);
  }
}

void gate(Activation activation, const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    const float g = gate[i];
    // gelu by tanh, as x * sigmoid(2 u) (Hendrycks & Gimpel 2016)
    const float u = activation == Activation::kSilu ? g : 1.5957691216057308f * (g + 0.044715f * g * g * g);
    out[i] = g / (1.0f + std::exp(-u)) * up[i];
  }
}

void rope(float* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

void rotate_head(float* x, int n) {
  const int block = n & -n;
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int half = 1; half < block; half *= 2)
    for (int first = 0; first < n; first += 2 * half)
      for (int i = first; i < first + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

void to_f16(const float* x, int n, std::uint16_t* y, int stride) {
  for (int i = 0; i < n; ++i) y[static_cast<std::size_t>(i) * stride] = f32_to_f16_clamped(x[i]);
}

std::uint16_t to_int8(const float* x, int n, std::int8_t* q) {
  float peak = 0;
  for (int i = 0; i < n; ++i) peak = std::max(peak, std::abs(x[i]));
  const std::uint16_t half = f32_to_f16_clamped(peak / 127.0f);
  const float scale = f16_to_f32(half), inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int i = 0; i < n; ++i) {
    const float scaled = std::max(-127.0f, std::min(127.0f, x[i] * inverse));  // NaN becomes 127
    q[i] = static_cast<std::int8_t>(std::nearbyint(scaled));
  }
  return half;
}

std::uint16_t to_int4(const float* x, int n, std::int8_t* codes) {
  float peak = 0;
  for (int i = 0; i < n; ++i) peak = std::max(peak, std::min(std::abs(x[i]), 65504.0f));  // NaN leaves it as it is
  const auto code = [&](int i, float inverse) {
    const float scaled = std::max(0.0f, std::min(15.0f, x[i] * inverse + 8.0f));  // NaN becomes 15
    return static_cast<int>(scaled);
  };
  // The best scale for given codes is sum(x q) / sum(q q), and leaves an error of sum(x x) - sum(x q)^2 / sum(q q).
  float best = -1, scale = 0, inverse = 0;
  for (const float range : kInt4Ranges) {
    const float tried = peak > 0 ? 7.5f / (peak * range) : 0.0f;
    float xq = 0, qq = 0;
    for (int i = 0; i < n; ++i) {
      const float q = static_cast<float>(code(i, tried)) - 7.5f;
      xq += std::max(-65504.0f, std::min(65504.0f, x[i])) * q;
      qq += q * q;
    }
    if (xq * xq / qq <= best) continue;
    best = xq * xq / qq;
    scale = xq / qq;
    inverse = tried;
  }
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::int8_t>(code(i, inverse));
  return f32_to_f16_clamped(scale);
}

void fold(const PartialSum& into, const PartialSum& other, int n) {
  const float max = std::max(*into.max, *other.max);
  const float a = std::exp(*into.max - max), b = std::exp(*other.max - max);
  for (int i = 0; i < n; ++i) into.sum[i] = into.sum[i] * a + other.sum[i] * b;
  *into.weight = *into.weight * a + *other.weight * b;
  *into.max = max;
}

}  // namespace
}  // namespace scalar

const Kernels& scalar_kernels() {
  static const Kernels table{
      "scalar",          scalar::matmul,      scalar::rms_norm,       scalar::quantize,       scalar::gate,
      scalar::rope,      scalar::rotate_head, scalar::to_f16,         scalar::to_int8,        scalar::to_int4,
      scalar::attention, scalar::attention,   scalar::int8_attention, scalar::int4_attention, scalar::fold,
      scalar::down_tile, scalar::add_tile};
  return table;
}

}  // namespace sixfold
