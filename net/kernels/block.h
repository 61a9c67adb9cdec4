// A transformer block: channel attention, then the feed-forward network, forward and backward.
#pragma once
# include "feedforward.h"

namespace film {

struct Block {
    ChannelAttention attention;
    FeedForward feed_forward;
};

// `v` (batch, c, height, width) and `saved` (batch, Scores::size()) are for the backward pass.
inline void transformer_block(
    const Block& layer, const float* x, long batch, long height, long width, float* out, float* v, double* saved
) {
    auto scores = channel_attention_scores(layer.attention, x, batch, height, width, v);
    for (long b = 0; b < batch; b++) scores[b].write(saved + b * scores[b].size());
    feed_forward(layer.feed_forward, Attended(layer.attention, x, v, scores, height, width), out);
}

// feed_forward.x (batch, c, height, width) takes the gradient between the halves.
inline void transformer_block_backward(
    const Block& layer, const float* x, const float* v, const double* saved, const float* dout, long batch, long height,
    long width, ChannelAttentionGrads attention, FeedForwardGrads feed_forward
) {
    std::vector<Scores> scores(batch, Scores(layer.attention.heads, layer.attention.dim()));
    for (long b = 0; b < batch; b++) scores[b].read(saved + b * scores[b].size());
    feed_forward_backward(
        layer.feed_forward, Attended(layer.attention, x, v, scores, height, width), dout, feed_forward
    );
    channel_attention_backward(layer.attention, x, v, scores, feed_forward.x, height, width, attention);
}

}  // namespace film
