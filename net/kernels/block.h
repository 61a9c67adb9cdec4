// A transformer block: channel attention, then the feed-forward network, forward and backward.
#pragma once
# include "feedforward.h"

namespace film {

struct TransformerBlock {
    ChannelAttention attention;
    FeedForward feed_forward;
};

// Two passes over x (batch, c, height, width). The first computes the scores of the channel attention and v; the second
// computes the attention's output a row at a time and sends it through the feed-forward network.
//
// v (batch, c, height, width) and `saved`, the scores (batch, Scores::size()), are kept for the backward pass.
inline void transformer_block(
    const TransformerBlock& layer, const float* x, long batch, long height, long width, float* y, float* v,
    double* saved
) {
    auto scores = channel_attention_scores(layer.attention, x, batch, height, width, v);
    for (long b = 0; b < batch; b++) scores[b].write(saved + b * scores[b].size());
    feed_forward(layer.feed_forward, AttentionOutput(layer.attention, x, v, scores, height, width), y);
}

// The halves in reverse order. feed_forward.x (batch, c, height, width) takes the gradient of the first half's output.
inline void transformer_block_backward(
    const TransformerBlock& layer, const float* x, const float* v, const double* saved, const float* dy, long batch,
    long height, long width, ChannelAttentionGrads attention, FeedForwardGrads feed_forward
) {
    std::vector<Scores> scores(batch, Scores(layer.attention.heads, layer.attention.dim()));
    for (long b = 0; b < batch; b++) scores[b].read(saved + b * scores[b].size());
    const AttentionOutput middle(layer.attention, x, v, scores, height, width);
    auto dm = feed_forward_backward(layer.feed_forward, middle, dy, feed_forward);
    channel_attention_backward(layer.attention, x, scores, dm, feed_forward.x, height, width, attention);
}

}  // namespace film
