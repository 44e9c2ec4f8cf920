// Drives libllama in this process by the protocol that protocol.py describes. Compiled against the peer's own sources.
//
// Each command gets a fresh context, as large as it needs and warmed up before the clock runs, so that nothing is
// cached between commands and a large KV buffer does not slow the small cases. Tokens are chosen by a plain argmax.

#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::json;
using Tokens = std::vector<llama_token>;

namespace {

constexpr int kBatch = 2048;  // llama.cpp's defaults for what is handed over and what is computed at once
constexpr int kMicroBatch = 512;

struct Options {
    std::string model;
    int threads = 2;
};

struct FreeContext {
    void operator()(llama_context* context) const { llama_free(context); }
};
using Context = std::unique_ptr<llama_context, FreeContext>;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A llama_batch that is filled token by token.
class Batch {
   public:
    explicit Batch(int capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    int size() const { return batch_.n_tokens; }
    void add(llama_token token, int position, int sequence, bool logits) {
        const int i = batch_.n_tokens++;
        batch_.token[i] = token;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = sequence;
        batch_.logits[i] = logits;
    }
    void run(llama_context* context) {
        if (llama_decode(context, batch_) != 0) throw std::runtime_error("llama_decode failed");
        llama_synchronize(context);
        batch_.n_tokens = 0;
    }

   private:
    llama_batch batch_;
};

Context make_context(llama_model* model, const Options& options, int sequences, int length) {
    llama_context_params params = llama_context_default_params();
    // each sequence has its own stream of equal size; llama.cpp rounds a stream up to 256 tokens
    params.n_ctx = sequences * ((length + 255) / 256 * 256);
    params.n_batch = kBatch;
    params.n_ubatch = kMicroBatch;
    params.n_seq_max = sequences;
    params.n_threads = options.threads;
    params.n_threads_batch = options.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
    params.kv_unified = false;
    Context context(llama_init_from_model(model, params));
    if (!context) throw std::runtime_error("no context");

    Batch batch(sequences);
    for (int s = 0; s < sequences; ++s) batch.add(1000 + s, 0, s, true);
    batch.run(context.get());
    llama_memory_clear(llama_get_memory(context.get()), false);
    return context;
}

int argmax(const float* logits, int size) { return int(std::max_element(logits, logits + size) - logits); }

json generate(llama_model* model, const Options& options, const std::vector<Tokens>& prompts, int new_tokens) {
    const int count = int(prompts.size());
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    size_t longest = 0;
    for (const Tokens& prompt : prompts) longest = std::max(longest, prompt.size());
    const Context context = make_context(model, options, count, int(longest) + new_tokens);
    Batch batch(kBatch);
    Tokens last(count);

    const double begin = now();
    std::vector<std::pair<int, int>> wanted;  // sequence, row of its last prompt token in the batch
    const auto flush = [&] {
        batch.run(context.get());
        for (const auto& [sequence, row] : wanted)
            last[sequence] = argmax(llama_get_logits_ith(context.get(), row), vocab);
        wanted.clear();
    };
    for (int s = 0; s < count; ++s) {
        for (size_t i = 0; i < prompts[s].size(); ++i) {
            const bool end = i + 1 == prompts[s].size();
            if (end) wanted.emplace_back(s, batch.size());
            batch.add(prompts[s][i], int(i), s, end);
            if (batch.size() == kBatch) flush();
        }
    }
    if (batch.size() > 0) flush();
    const double prefilled = now();

    for (int step = 1; step < new_tokens; ++step) {
        for (int s = 0; s < count; ++s) batch.add(last[s], int(prompts[s].size()) + step - 1, s, true);
        batch.run(context.get());
        for (int s = 0; s < count; ++s) last[s] = argmax(llama_get_logits_ith(context.get(), s), vocab);
    }
    return {{"prefill_seconds", prefilled - begin},
            {"decode_seconds", now() - prefilled},
            {"decode_tokens", count * (new_tokens - 1)}};
}

double loss_of(const float* logits, int size, llama_token target) {
    const float peak = *std::max_element(logits, logits + size);
    double sum = 0;
    for (int i = 0; i < size; ++i) sum += std::exp(double(logits[i] - peak));
    return std::log(sum) + peak - logits[target];
}

json score(llama_model* model, const Options& options, const std::vector<Tokens>& windows) {
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    double loss = 0;
    int tokens = 0;
    size_t longest = 0;
    for (const Tokens& window : windows) longest = std::max(longest, window.size());
    const Context context = make_context(model, options, 1, int(longest));
    Batch batch(kBatch);
    for (const Tokens& window : windows) {
        llama_memory_clear(llama_get_memory(context.get()), false);
        const int half = int(window.size()) / 2, end = int(window.size()) - 1;
        for (int i = 0; i < end; ++i) batch.add(window[i], i, 0, i >= half);
        batch.run(context.get());
        for (int i = half; i < end; ++i, ++tokens)
            loss += loss_of(llama_get_logits_ith(context.get(), i), vocab, window[i + 1]);
    }
    return {{"loss", loss}, {"tokens", tokens}};
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--model") options.model = argv[i + 1];
        if (name == "--threads") options.threads = std::atoi(argv[i + 1]);  // the other options do not concern us
    }
    return options;
}

}  // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    llama_log_set([](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_WARN) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(options.model.c_str(), llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "cannot load %s\n", options.model.c_str());
        return 1;
    }
    std::cout << json{{"ready", true}, {"engine", "llama.cpp"}, {"system", llama_print_system_info()}} << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        json answer;
        try {
            const json command = json::parse(line);
            if (command.contains("windows"))
                answer = score(model, options, command["windows"].get<std::vector<Tokens>>());
            else
                answer = generate(model, options, command["prompts"].get<std::vector<Tokens>>(),
                                  command["new_tokens"].get<int>());
        } catch (const std::exception& error) {
            answer = {{"error", error.what()}};
        }
        std::cout << answer << std::endl;
    }
    llama_model_free(model);
    llama_backend_free();
}
