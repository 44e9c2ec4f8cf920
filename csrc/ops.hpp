// Every operator of a plan, declared once. T rows (tokens) a step, R wanted rows; H hidden, V vocabulary, I
// intermediate, Q = query_heads * head_size. x is the residual stream [T, H]. "emit" writes activations as int8 with
// block scales and/or float32, as the consumers of the plan need them.
//
//   kRopeTable    norm[0]: inverse frequencies [n]      -> cosine, sine [T, n] of rope table `rope`
//   kEmbed        matrix[0] [V, H]                      -> x = scale * embedding of the tokens
//   kNorm         norm[0] [H]                           -> normed = emit(rms_norm(x))
//   kQkv          matrix[0..2] [Q, H] [KV, H] [KV, H],  -> q = scale * rope(norm0(W_q normed + bias0)), K page =
//                 bias[0..2], norm[0..1] [head_size]       rope(norm1(W_k normed + bias1)), V page = W_v normed + bias2
//   kAttention    window                                -> slots: partial softmax(q K^T) V
//   kMerge                                              -> attended = emit(slots folded and normalised)
//   kMatmulAdd    matrix[0] [H, Q or I], bias[0], input -> x += W input + bias
//   kMatmul       the same                              -> y = W input + bias
//   kNormAdd      norm[0]                               -> x += rms_norm(y)
//   kNormAddNorm  norm[0], norm[1]                      -> x += norm0(y); normed = emit(norm1(x))
//   kGateUp       matrix[0], matrix[1] [I, H]           -> gated = emit(act(W_gate normed) * (W_up normed))
//   kGatherNorm   norm[0]                               -> head_input = emit(rms_norm(x[wanted rows]))
//   kLogits       matrix[0] [V, H]                      -> logits [R, V] = scale * W head_input
#pragma once

#include "step.hpp"

namespace sixfold {

constexpr int kRowBlock = 128;  // rows whose activations stay in the L2 cache while tiles of weights pass
constexpr int kQkvRows = 16;    // rows of one head's output held in scratch for the epilogue

// How many chunks an operator is cut into for the current step; any split gives the same result.
int chunk_count(const Step& step, const OpRecord& op, int threads);
// `inputs`: where norms and merges write and products read.
void run_chunk(Step& step, const OpRecord& op, int chunk, int chunks, int worker, Inputs& inputs);

// What comes before an operator with matrices in a step with adapters: their A times its input. The operator itself
// then adds B times that to each of its products.
bool takes_adapters(const OpRecord& op);
int down_chunk_count(const Step& step, const OpRecord& op, int threads);
void run_down_chunk(Step& step, const OpRecord& op, int chunk, int chunks, Inputs& inputs);

}  // namespace sixfold
